// What a program should hear of that is no error.

/** Warns whoever runs the program: as Node does, or on the console where there is no Node. */
export function warn(message: string): void {
  const { process } = globalThis;
  if (typeof process?.emitWarning === 'function') process.emitWarning(message, 'UserfaultfdWarning');
  else console.warn(`UserfaultfdWarning: ${message}`);
}
