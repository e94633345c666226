// The file that the library's threads start with outside of a bundle. It lies next to this file, also in the package.

import type { OwnFile } from './launcher.js';

export const ENTRY: OwnFile = { file: 'entry.js', module: import.meta.url };
