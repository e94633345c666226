// A preloaded module: prints on stderr the folder for which the command enables Node's compile cache, on every version
// of Node.

import Module from 'node:module';

Object.assign(Module, {
  enableCompileCache: (folder: string) => process.stderr.write(`compile cache: ${folder}\n`),
});
