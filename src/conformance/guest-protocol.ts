// What the guest's process is started with, and what it reports to the process that supervises it.

/** A region of the guest's memory, in pages. Regions are placed one after the other, with a gap of a page between. */
export interface RegionPlan {
  readonly pages: number;
  /** Its offset in the memory file. */
  readonly offset: number;
}

/** The guest's memory. */
export interface MemoryPlan {
  /** Pages of the memory file; default 64. */
  readonly pages?: number;
  /** Bytes of a page; default 4096. */
  readonly pageSize?: number;
  /** Default: one region of all pages. */
  readonly regions?: readonly RegionPlan[];
}

export const PAGES = 64;
export const PAGE_SIZE = 4096;

/** What the guest's process is started with. */
export interface GuestOptions {
  readonly scenario: string;
  readonly socket: string;
  readonly memory: string;
  /** The handler's process group. */
  readonly handler: number;
}

/** What the guest asks its supervisor for, because it cannot do that itself. */
export type Request = 'stop me' | 'kill me' | 'restart the handler';

/** Lines of the guest's process. They are written at once, because the guest may hang right after that. */
export type GuestLine =
  | { readonly is: 'step'; readonly text: string }
  | { readonly is: 'passed'; readonly remark?: string | undefined }
  | { readonly is: 'not applicable'; readonly reason: string }
  | {
      readonly is: 'failed';
      readonly reason: string;
      /** Whether it failed because the handler has closed the connection. */
      readonly closed?: boolean;
      readonly page?: { address: string; offset: number; expected: string; actual: string } | undefined;
    };
