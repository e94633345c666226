// The description of a remote file: plain data that a program makes and posts to the pager's thread. This file does
// not import the HTTP client, so that a program's own thread does not load it.

import { X509Certificate } from 'node:crypto';
import {
  checkInteger,
  checkOneOf,
  checkOptions,
  invalidValue,
  outOfRange,
  wrongType,
} from '../errors/arguments.js';

/** How servers are reached. All are plain data. */
export interface TransportOptions {
  /**
   * Headers to send with each request. After a redirect to another origin, headers that look like credentials are not
   * sent: those whose name contains "auth", "cookie", "key", "secret" or "token".
   */
  headers?: Record<string, string>;
  /** Certificate authorities to trust in addition to those of Node and of the system, in PEM format. */
  ca?: string | string[];
  /**
   * The URL of an HTTP proxy; `environment` to use the variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY, also in lower
   * case; or `none`. HTTP_PROXY is also used for https if there is no HTTPS_PROXY. Default: `environment`.
   */
  proxy?: string | 'environment' | 'none';
  /** A request fails if no byte arrives for this long, in milliseconds. Default: 30,000. */
  timeoutMs?: number;
  /** How often a read is attempted in all. Default: 5. */
  attempts?: number;
  /** Most requests at once. Default: 8. */
  parallel?: number;
}

/** Options of a remote file. All are plain data. */
export interface HttpSourceOptions extends TransportOptions {
  /** Most redirects to follow for one request. Default: 5. */
  redirects?: number;
}

/** Describes a remote file to a pager. */
export interface HttpSource {
  readonly kind: 'http';
  readonly url: string;
  readonly options: HttpSourceOptions;
}

/** Headers that the source sets itself, or that would change what the answer means. */
const RESERVED = new Set([
  ...['accept-encoding', 'connection', 'content-length', 'expect', 'host', 'if-match', 'if-modified-since'],
  ...['if-none-match', 'if-range', 'if-unmodified-since', 'keep-alive', 'proxy-connection', 'range', 'te'],
  ...['trailer', 'transfer-encoding', 'upgrade'],
]);
const LONGEST_MS = 2 ** 31 - 1;

/**
 * Describes a remote file that a server offers over HTTP or HTTPS. The server must support range requests. Nothing is
 * connected until a pager opens the description.
 *
 * @param url an http: or https: URL; a user name and password in it are sent as basic authentication
 */
export function httpSource(url: string | URL, options: HttpSourceOptions = {}): HttpSource {
  const { href } = checkUrl(url);
  checkOptions(options, 'options');
  const { redirects } = options;
  if (redirects !== undefined) checkInteger(redirects, 'redirects', 0, 100);
  return {
    kind: 'http',
    url: href,
    options: { ...checkTransport(options), ...(redirects !== undefined && { redirects }) },
  };
}

/**
 * Checks the options about servers, and copies them, so that a later change of the program's object has no effect.
 *
 * @throws TypeError, RangeError
 */
export function checkTransport(options: TransportOptions): TransportOptions {
  const { headers, ca, proxy, timeoutMs, attempts, parallel } = options;
  if (headers !== undefined) checkHeaders(headers);
  if (ca !== undefined) checkAuthorities(ca);
  if (proxy !== undefined) checkProxy(proxy);
  if (timeoutMs !== undefined) checkInteger(timeoutMs, 'timeoutMs', 1, LONGEST_MS);
  if (attempts !== undefined) checkInteger(attempts, 'attempts', 1, 1000);
  if (parallel !== undefined) checkInteger(parallel, 'parallel', 1, 1000);
  return {
    ...(headers && { headers: { ...headers } }),
    ...(ca !== undefined && { ca: typeof ca === 'string' ? ca : [...ca] }),
    ...(proxy !== undefined && { proxy }),
    ...(timeoutMs !== undefined && { timeoutMs }),
    ...(attempts !== undefined && { attempts }),
    ...(parallel !== undefined && { parallel }),
  };
}

function checkUrl(value: unknown): URL {
  if (typeof value !== 'string' && !(value instanceof URL)) throw wrongType('url', 'a URL', value);
  const url = parsed(value);
  if (!url) throw invalidValue('url must be an absolute URL');
  checkOneOf(url.protocol, "url's protocol", ['http:', 'https:']);
  try {
    decodeURIComponent(url.username + url.password);
  } catch {
    throw invalidValue("url's user name and password must be percent-encoded UTF-8");
  }
  url.hash = '';
  return url;
}

function parsed(value: string | URL): URL | undefined {
  try {
    return new URL(value);
  } catch {
    // The message of the error contains the URL, and so perhaps a password.
    return undefined;
  }
}

function checkHeaders(headers: unknown): void {
  checkOptions(headers, 'headers');
  // Not imported: from Node 22 on, an import of this module loads Node's whole HTTP client.
  const { validateHeaderName, validateHeaderValue } = process.getBuiltinModule('node:http');
  for (const [name, value] of Object.entries(headers)) {
    validateHeaderName(name);
    if (typeof value !== 'string') throw wrongType(`headers: ${name}`, 'a string', value);
    validateHeaderValue(name, value);
    const lower = name.toLowerCase();
    if (RESERVED.has(lower))
      throw invalidValue(`headers must not contain ${name}; the source sets it itself`);
    if (lower === 'proxy-authorization')
      throw invalidValue(`headers must not contain ${name}; put the user name and password into proxy`);
  }
}

function checkAuthorities(ca: unknown): void {
  for (const pem of typeof ca === 'string' ? [ca] : Array.isArray(ca) ? ca : [undefined]) {
    if (typeof pem !== 'string') throw wrongType('ca', 'a string or an array of strings', pem ?? ca);
    const certificates = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g);
    if (!certificates?.every(isCertificate))
      throw invalidValue('ca must be certificates in PEM format, not the name of a file');
  }
}

function isCertificate(pem: string): boolean {
  try {
    return new X509Certificate(pem) !== undefined;
  } catch {
    return false;
  }
}

function checkProxy(proxy: unknown): void {
  if (typeof proxy !== 'string') throw wrongType('proxy', "'environment', 'none' or a URL", proxy);
  if (proxy === 'environment' || proxy === 'none') return;
  const url = parsed(proxy);
  if (url?.protocol !== 'http:' && url?.protocol !== 'https:')
    throw outOfRange(
      'proxy',
      "'environment', 'none' or an http: or https: URL",
      url?.protocol ?? 'not a URL',
    );
}
