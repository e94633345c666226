// Where a request goes: a URL, and which headers its server may see, over redirects.

import { RequestFailure } from './http-answer.js';

/** Where a request goes. */
export interface Target {
  readonly url: URL;
  /** Whether all redirects so far stayed on the origin that the program named. */
  readonly trusted: boolean;
}

/** Names of headers that are not sent to another origin. */
const CREDENTIAL = /auth|cookie|key|secret|token/i;

/** The target of a URL that the program named, without a user name and password, and the headers for it. */
export function targetOf(
  href: string,
  headers: Readonly<Record<string, string>>,
): { target: Target; headers: Record<string, string> } {
  const url = new URL(href);
  const { username, password } = url;
  url.username = '';
  url.password = '';
  const all = [
    // Some servers refuse a request without it.
    ['user-agent', 'userfaultfd'],
    ...(username || password ? [['authorization', basic(username, password)]] : []),
    ...Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]),
  ] as [string, string][];
  return { target: { url, trusted: true }, headers: Object.fromEntries(all) };
}

/** The headers that may be sent to a target: all, or those that cannot be credentials. */
export function headersFor(
  { trusted }: Target,
  headers: Readonly<Record<string, string>>,
): Readonly<Record<string, string>> {
  if (trusted) return headers;
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !CREDENTIAL.test(name)));
}

/** The target of a redirect. Credentials go no further than the origin that the program named. */
export function redirected(from: Target, location: string): Target {
  let url: URL;
  try {
    url = new URL(location, from.url);
  } catch {
    throw new RequestFailure('the server redirected to an invalid URL', 'permanent');
  }
  if (url.protocol !== 'https:' && url.protocol !== 'http:')
    throw new RequestFailure(`the server redirected to a URL of ${url.protocol}`, 'permanent');
  if (from.url.protocol === 'https:' && url.protocol === 'http:')
    throw new RequestFailure(`the server redirected from https to ${display(url)}`, 'permanent');
  url.username = '';
  url.password = '';
  url.hash = '';
  return { url, trusted: from.trusted && url.origin === from.url.origin };
}

function basic(username: string, password: string): string {
  const text = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`;
  return `Basic ${Buffer.from(text).toString('base64')}`;
}

/** A URL for messages: without user name, password and query, which may be secret. */
export function display(url: URL): string {
  return url.origin + url.pathname;
}
