// What the package says of itself.

import { readFileSync } from 'node:fs';

interface Manifest {
  version: string;
  engines: { node: string };
}

export function manifest(): Manifest {
  return JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as Manifest;
}

/** The oldest version of Node that the package supports: '20.19'. */
export function leastNode(): string {
  return manifest().engines.node.replace(/^>=/, '');
}
