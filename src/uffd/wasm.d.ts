/** The bytes of a module: the release build, or under the condition `uffd-debug` the one with assertions. */
declare const bytes: Uint8Array<ArrayBuffer>;
export default bytes;
