// The declarations that are published: one file for each entry, and one for the types that several entries share. So a
// class is the same class from every entry.

import { join } from 'node:path';

/** Bundles the declarations of entries. The packages are loaded here, since no other step needs them. */
export async function bundleTypes(
  entries: Readonly<Record<string, string>>,
  from: string,
  to: string,
): Promise<void> {
  const [{ rollup }, { dts }] = await Promise.all([import('rollup'), import('rollup-plugin-dts')]);
  const bundle = await rollup({
    input: Object.fromEntries(
      Object.entries(entries).map(([name, file]) => [name, join(from, `${file}.d.ts`)]),
    ),
    plugins: [dts()],
    external: [/^node:/, 'koffi', /^@assemblyscript/],
    onwarn(warning) {
      throw new Error(warning.message);
    },
  });
  await bundle.write({
    dir: to,
    entryFileNames: '[name].d.ts',
    chunkFileNames: 'shared-[hash].d.ts',
  });
  await bundle.close();
}
