// What the command's threads and processes are started with, where it is not in a bundle.

export const COMMAND = { file: 'main.js', module: import.meta.url };
