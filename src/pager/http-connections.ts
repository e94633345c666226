// Connections to servers and proxies. Nothing here uses libuv's thread pool: names are resolved over sockets, files are
// read synchronously, and TLS of Node runs on the calling thread.

import { readFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { createSecureContext, rootCertificates, type SecureContext } from 'node:tls';
import { buildConnector, type Dispatcher, EnvHttpProxyAgent, Pool } from 'undici';
import type { ReadBuffers } from './http-buffers.js';
import type { HttpSourceOptions } from './http-description.js';
import { openNames } from './http-names.js';
import { SourceError } from './source.js';

export interface Connections {
  readonly dispatcher: Pick<Dispatcher, 'dispatch'>;
  /** Ends all connections at once, those being made too. */
  close(): void;
}

/**
 * @param connections most to one server or proxy; further requests wait
 * @param buffers for connections without a proxy
 */
export function openConnections(
  { ca, proxy = 'environment' }: HttpSourceOptions,
  timeoutMs: number,
  connections: number,
  buffers: ReadBuffers,
): Connections {
  const names = openNames(timeoutMs);
  const sockets = new Set<Socket>();
  let context: SecureContext | undefined;
  const shared = {
    lookup: names.lookup,
    timeout: timeoutMs,
    // Parsing the authorities takes some 60 ms, so it is left until the first encrypted connection.
    get secureContext(): SecureContext {
      context ??= createSecureContext({ ca: authorities(ca) });
      return context;
    },
  };

  /** Also remembers each socket: undici does not destroy one that is still connecting. */
  function remembering(connect: buildConnector.connector): buildConnector.connector {
    return (options, callback) => {
      const socket: unknown = connect(options, callback);
      if (!(socket instanceof Socket)) return;
      sockets.add(socket);
      socket.once('close', () => sockets.delete(socket));
    };
  }

  const { onread } = buffers;
  // A read fills at most 64 KiB. Beyond several of them, the server has to wait.
  const direct = { highWaterMark: 256 << 10 };
  const plain = buildConnector({ ...direct, lookup: names.lookup, timeout: timeoutMs, onread });
  let encrypted: buildConnector.connector | undefined;
  function connect(options: buildConnector.Options, callback: buildConnector.Callback): unknown {
    if (options.protocol !== 'https:') return plain(options, callback);
    encrypted ??= buildConnector({ ...direct, ...shared, onread });
    return encrypted(options, callback);
  }

  function pool(origin: string | URL, options: object): Pool {
    const { connect } = options as { connect: buildConnector.connector };
    return new Pool(origin, {
      connections,
      headersTimeout: timeoutMs,
      bodyTimeout: timeoutMs,
      connect: remembering(connect),
    });
  }

  const proxies = proxiesOf(proxy);
  const dispatcher = new EnvHttpProxyAgent({
    ...proxies,
    connect,
    connections,
    factory: pool,
    clientFactory: pool,
    // Requests over HTTP are sent to the proxy itself: many allow tunnels to port 443 only.
    proxyTunnel: false,
    // Undici copies these two when it is made, which parses the authorities.
    ...((proxies.httpProxy || proxies.httpsProxy) && { proxyTls: shared, requestTls: shared }),
  });
  return {
    dispatcher,
    close() {
      names.close();
      dispatcher.destroy().catch(() => {});
      for (const socket of sockets) socket.destroy();
    },
  };
}

/** Options of undici, which uses `httpProxy` for https too if `httpsProxy` is empty. */
function proxiesOf(proxy: string): { httpProxy: string; httpsProxy: string; noProxy: string } {
  const { env } = process;
  if (proxy === 'none') return { httpProxy: '', httpsProxy: '', noProxy: '' };
  if (proxy !== 'environment') return { httpProxy: proxy, httpsProxy: proxy, noProxy: '' };
  return {
    httpProxy: proxyUrl('http_proxy', env.http_proxy ?? env.HTTP_PROXY),
    httpsProxy: proxyUrl('https_proxy', env.https_proxy ?? env.HTTPS_PROXY),
    noProxy: env.no_proxy ?? env.NO_PROXY ?? '',
  };
}

function proxyUrl(variable: string, value = ''): string {
  // Other programs accept a host and port alone.
  const url = value === '' || value.includes('://') ? value : `http://${value}`;
  // The value is not in the message, because it may contain a password.
  if (url !== '' && !(URL.canParse(url) && /^https?:/i.test(url)))
    throw new SourceError(`the environment variable ${variable} is not the URL of an HTTP proxy`, true);
  return url;
}

/** Where distributions keep all authorities that the system trusts: Debian, Fedora, SUSE, Alpine. */
const SYSTEM_FILES = [
  ...['/etc/ssl/certs/ca-certificates.crt', '/etc/pki/tls/certs/ca-bundle.crt'],
  ...['/etc/ssl/ca-bundle.pem', '/etc/ssl/cert.pem'],
];

/** The authorities of Node, those of the system, and those of the program, each once. */
function authorities(ca: string | readonly string[] = []): string[] {
  const { SSL_CERT_FILE, NODE_EXTRA_CA_CERTS } = process.env;
  const given = typeof ca === 'string' ? [ca] : ca;
  const system = SSL_CERT_FILE ? [SSL_CERT_FILE] : SYSTEM_FILES;
  const files = [
    system.map(readIfPossible).find((text) => text !== ''),
    NODE_EXTRA_CA_CERTS && readIfPossible(NODE_EXTRA_CA_CERTS),
  ];
  const all = new Map<string, string>();
  for (const text of [...rootCertificates, ...files, ...given]) {
    const found = text?.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
    // Parsing one takes 0.4 ms, and most authorities of the system are also among Node's.
    for (const certificate of found) all.set(certificate.replace(/\s/g, ''), certificate);
  }
  return [...all.values()];
}

function readIfPossible(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
