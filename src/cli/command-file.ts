// The file that the command's threads and processes are started with, outside of a bundle.

export const COMMAND = { file: 'main.js', module: import.meta.url };
