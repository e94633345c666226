// Sizes and offsets as exports, for the test that compares them with the C header. It compiles this file and
// abi.ts by themselves; no build of the core contains it. Names are `struct__field`; `overlay_struct_member` is
// the size of a class that lies over a union's member, and must be that of the struct.

import {
  page_region,
  pm_scan_arg,
  pollfd,
  uffd_msg,
  uffd_msg_fork,
  uffd_msg_pagefault,
  uffd_msg_remap,
  uffd_msg_remove,
  uffdio_api,
  uffdio_continue,
  uffdio_copy,
  uffdio_move,
  uffdio_poison,
  uffdio_range,
  uffdio_register,
  uffdio_writeprotect,
  uffdio_zeropage,
} from './abi';

export const uffd_msg__event: usize = offsetof<uffd_msg>('event');
export const sizeof_uffd_msg: usize = offsetof<uffd_msg>();
export const overlay_uffd_msg_pagefault: usize = offsetof<uffd_msg_pagefault>();
export const overlay_uffd_msg_fork: usize = offsetof<uffd_msg_fork>();
export const overlay_uffd_msg_remap: usize = offsetof<uffd_msg_remap>();
export const overlay_uffd_msg_remove: usize = offsetof<uffd_msg_remove>();
export const uffd_msg__arg_pagefault_flags: usize = offsetof<uffd_msg_pagefault>('flags');
export const uffd_msg__arg_pagefault_address: usize = offsetof<uffd_msg_pagefault>('address');
export const uffd_msg__arg_pagefault_feat_ptid: usize = offsetof<uffd_msg_pagefault>('ptid');
export const uffd_msg__arg_fork_ufd: usize = offsetof<uffd_msg_fork>('ufd');
export const uffd_msg__arg_remap_from: usize = offsetof<uffd_msg_remap>('from');
export const uffd_msg__arg_remap_to: usize = offsetof<uffd_msg_remap>('to');
export const uffd_msg__arg_remap_len: usize = offsetof<uffd_msg_remap>('len');
export const uffd_msg__arg_remove_start: usize = offsetof<uffd_msg_remove>('start');
export const uffd_msg__arg_remove_end: usize = offsetof<uffd_msg_remove>('end');

export const uffdio_api__api: usize = offsetof<uffdio_api>('api');
export const uffdio_api__features: usize = offsetof<uffdio_api>('features');
export const uffdio_api__ioctls: usize = offsetof<uffdio_api>('ioctls');
export const sizeof_uffdio_api: usize = offsetof<uffdio_api>();

export const uffdio_range__start: usize = offsetof<uffdio_range>('start');
export const uffdio_range__len: usize = offsetof<uffdio_range>('len');
export const sizeof_uffdio_range: usize = offsetof<uffdio_range>();

export const uffdio_register__range: usize = offsetof<uffdio_register>('start');
export const uffdio_register__mode: usize = offsetof<uffdio_register>('mode');
export const uffdio_register__ioctls: usize = offsetof<uffdio_register>('ioctls');
export const sizeof_uffdio_register: usize = offsetof<uffdio_register>();

export const uffdio_copy__dst: usize = offsetof<uffdio_copy>('dst');
export const uffdio_copy__src: usize = offsetof<uffdio_copy>('src');
export const uffdio_copy__len: usize = offsetof<uffdio_copy>('len');
export const uffdio_copy__mode: usize = offsetof<uffdio_copy>('mode');
export const uffdio_copy__copy: usize = offsetof<uffdio_copy>('copy');
export const sizeof_uffdio_copy: usize = offsetof<uffdio_copy>();

export const uffdio_zeropage__range: usize = offsetof<uffdio_zeropage>('start');
export const uffdio_zeropage__mode: usize = offsetof<uffdio_zeropage>('mode');
export const uffdio_zeropage__zeropage: usize = offsetof<uffdio_zeropage>('zeropage');
export const sizeof_uffdio_zeropage: usize = offsetof<uffdio_zeropage>();

export const uffdio_move__dst: usize = offsetof<uffdio_move>('dst');
export const uffdio_move__src: usize = offsetof<uffdio_move>('src');
export const uffdio_move__len: usize = offsetof<uffdio_move>('len');
export const uffdio_move__mode: usize = offsetof<uffdio_move>('mode');
export const uffdio_move__move: usize = offsetof<uffdio_move>('move');
export const sizeof_uffdio_move: usize = offsetof<uffdio_move>();

export const uffdio_writeprotect__range: usize = offsetof<uffdio_writeprotect>('start');
export const uffdio_writeprotect__mode: usize = offsetof<uffdio_writeprotect>('mode');
export const sizeof_uffdio_writeprotect: usize = offsetof<uffdio_writeprotect>();

export const uffdio_continue__range: usize = offsetof<uffdio_continue>('start');
export const uffdio_continue__mode: usize = offsetof<uffdio_continue>('mode');
export const uffdio_continue__mapped: usize = offsetof<uffdio_continue>('mapped');
export const sizeof_uffdio_continue: usize = offsetof<uffdio_continue>();

export const uffdio_poison__range: usize = offsetof<uffdio_poison>('start');
export const uffdio_poison__mode: usize = offsetof<uffdio_poison>('mode');
export const uffdio_poison__updated: usize = offsetof<uffdio_poison>('updated');
export const sizeof_uffdio_poison: usize = offsetof<uffdio_poison>();

export const pollfd__fd: usize = offsetof<pollfd>('fd');
export const pollfd__events: usize = offsetof<pollfd>('events');
export const pollfd__revents: usize = offsetof<pollfd>('revents');
export const sizeof_pollfd: usize = offsetof<pollfd>();

export const pm_scan_arg__size: usize = offsetof<pm_scan_arg>('size');
export const pm_scan_arg__flags: usize = offsetof<pm_scan_arg>('flags');
export const pm_scan_arg__start: usize = offsetof<pm_scan_arg>('start');
export const pm_scan_arg__end: usize = offsetof<pm_scan_arg>('end');
export const pm_scan_arg__walk_end: usize = offsetof<pm_scan_arg>('walk_end');
export const pm_scan_arg__vec: usize = offsetof<pm_scan_arg>('vec');
export const pm_scan_arg__vec_len: usize = offsetof<pm_scan_arg>('vec_len');
export const pm_scan_arg__max_pages: usize = offsetof<pm_scan_arg>('max_pages');
export const pm_scan_arg__category_inverted: usize = offsetof<pm_scan_arg>('category_inverted');
export const pm_scan_arg__category_mask: usize = offsetof<pm_scan_arg>('category_mask');
export const pm_scan_arg__category_anyof_mask: usize = offsetof<pm_scan_arg>('category_anyof_mask');
export const pm_scan_arg__return_mask: usize = offsetof<pm_scan_arg>('return_mask');
export const sizeof_pm_scan_arg: usize = offsetof<pm_scan_arg>();

export const page_region__start: usize = offsetof<page_region>('start');
export const page_region__end: usize = offsetof<page_region>('end');
export const page_region__categories: usize = offsetof<page_region>('categories');
export const sizeof_page_region: usize = offsetof<page_region>();
