// Bundles the part of undici that a pager's HTTP source uses.

import { isBuiltin } from 'node:module';
import type { Plugin } from 'esbuild';

/**
 * What `undici` exports in a bundle. Undici's own index would also set the global dispatcher, which `fetch` of the whole
 * thread uses. It adds `connect` to all dispatchers, and tunnels through a proxy need that.
 */
const INDEX = `
exports.buildConnector = require('undici/lib/core/connect.js');
exports.EnvHttpProxyAgent = require('undici/lib/dispatcher/env-http-proxy-agent.js');
exports.Pool = require('undici/lib/dispatcher/pool.js');
require('undici/lib/dispatcher/dispatcher.js').prototype.connect = require('undici/lib/api/api-connect.js');
`;

/** Files that are loaded but not used: HTTP/2 is off, proxies have http: or https: URLs, and bodies are buffers. */
const UNUSED =
  /undici\/lib\/(core\/socks5-client|dispatcher\/(client-h2|socks5-proxy-agent)|web\/fetch\/body)\.js$/;

/** The parser of HTTP as WebAssembly with SIMD. Undici also has it without, for machines that have no SIMD. */
const PARSER = /undici\/lib\/llhttp\/llhttp_simd-wasm\.js$/;

/** Packages that are CommonJS. */
const COMMON_JS = /node_modules\/(undici|aws4)\//;

/**
 * Leaves out what is not used, and lets CommonJS files load modules of Node where there is no `require`: in an ES
 * module, into which a program that uses this library may be bundled, too.
 */
export const bundledUndici: Plugin = {
  name: 'undici',
  setup({ initialOptions, onResolve, onLoad }) {
    const resolveDir = initialOptions.absWorkingDir ?? process.cwd();
    onResolve({ filter: /^undici$/ }, () => ({ path: 'undici', namespace: 'undici' }));
    onLoad({ filter: /./, namespace: 'undici' }, () => ({ contents: INDEX, resolveDir }));
    onLoad({ filter: UNUSED }, () => ({ contents: 'module.exports = {};' }));
    onLoad({ filter: PARSER }, () => ({ contents: `module.exports = require('./llhttp-wasm.js');` }));
    onResolve({ filter: /./ }, ({ path, importer }) =>
      isBuiltin(path) && COMMON_JS.test(importer) ? { path, namespace: 'of Node' } : undefined,
    );
    onLoad({ filter: /./, namespace: 'of Node' }, ({ path }) => ({
      contents: `module.exports = process.getBuiltinModule(${JSON.stringify(path)});`,
    }));
  },
};
