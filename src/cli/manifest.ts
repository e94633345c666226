// Facts of the package that the build inserts.

declare const UFFD_VERSION: string;
declare const UFFD_NODE: string;

export const VERSION = UFFD_VERSION;
/** The oldest version of Node that the package supports: '20.19'. */
export const NODE_LEAST = UFFD_NODE.replace(/^>=/, '');
