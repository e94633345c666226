// Warnings: messages for the user that are not errors.

/** Prints a warning: as Node does, or on the console if there is no Node. */
export function warn(message: string): void {
  const { process } = globalThis;
  if (typeof process?.emitWarning === 'function') process.emitWarning(message, 'UserfaultfdWarning');
  else console.warn(`UserfaultfdWarning: ${message}`);
}
