// A module that the command under test preloads: forbids seccomp(2), as a strict profile of a container does.

import { isMainThread } from 'node:worker_threads';
import { forbidCalls } from '../../support/forbidden-calls.js';

// Children inherit the filter, and cannot set it again.
if (isMainThread && process.env.UFFD_FORBIDDEN === undefined) {
  forbidCalls(['seccomp']);
  process.env.UFFD_FORBIDDEN = 'yes';
}
