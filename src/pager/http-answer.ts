// Checks the status and the headers of an answer before any byte of its body is used: whether it is the range that was
// requested, of the same file as at first.

import { STATUS_CODES } from 'node:http';

/** Why a request failed, as the end of a sentence. */
export class RequestFailure extends Error {
  /**
   * What to do: `retry` later, give up because it is `permanent`, or, if a redirect led to the URL that refused, ask
   * the original URL for another one.
   */
  readonly remedy: 'retry' | 'permanent' | 'renew';
  /** The least time until the next attempt. */
  readonly afterMs: number;
  /** The status of the answer, if it is why. */
  readonly status: number | undefined;

  constructor(
    message: string,
    remedy: 'retry' | 'permanent' | 'renew',
    { afterMs = 0, status, ...options }: ErrorOptions & { afterMs?: number; status?: number } = {},
  ) {
    super(message, options);
    this.remedy = remedy;
    this.afterMs = afterMs;
    this.status = status;
  }
}

const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 10_000;

/** How long to wait before the next attempt after so many, which have failed: random, and longer each time. */
export function backoffMs(tries: number, { afterMs }: RequestFailure): number {
  const longest = Math.min(FIRST_PAUSE_MS * 2 ** (tries - 1), LONGEST_PAUSE_MS);
  return Math.max(Math.random() * longest, afterMs);
}

export type Headers = Readonly<Record<string, string | string[] | undefined>>;

/** What each answer must repeat, so that all bytes are of one version of the file. */
export interface Version {
  readonly size: number;
  readonly pinned: 'etag' | 'last-modified' | 'size';
  /** The value of the header that `pinned` names. */
  readonly value: string | undefined;
  /** A weak ETag: if it differs, the file has changed; if it does not, that says nothing of its bytes. */
  readonly weak: string | undefined;
}

/** The longest time that a server can delay the next attempt. */
const LONGEST_AFTER_MS = 60_000;
const CHANGED = 'the file has changed since it was opened';

/** The headers that make the server refuse if the file has changed. */
export function precondition(version: Version | undefined): Record<string, string> {
  if (version?.pinned === 'etag') return { 'if-match': version.value as string };
  if (version?.pinned === 'last-modified') return { 'if-unmodified-since': version.value as string };
  return {};
}

/** The target of a redirect, or undefined if the answer is none. */
export function redirectOf(status: number, headers: Headers): string | undefined {
  if (![301, 302, 303, 307, 308].includes(status)) return undefined;
  const { location } = headers;
  if (typeof location !== 'string' || location === '')
    throw new RequestFailure(`the server answered ${named(status)} without a Location`, 'permanent');
  return location;
}

/**
 * Checks the answer to a request for the bytes from `first` to `last`.
 *
 * @param version the file as it was opened; undefined while it is opened
 * @returns the version that the answer is of
 * @throws RequestFailure
 */
export function checkAnswer(
  status: number,
  headers: Headers,
  first: number,
  last: number,
  version: Version | undefined,
): Version {
  if (status === 200) {
    if (!version && headers['content-length'] === '0') throw isEmpty();
    throw new RequestFailure(
      'the server ignored the Range header and answered 200 OK; use a server that supports range requests, or ' +
        'download the file first',
      // It did not when the file was opened: a proxy on the way may.
      version ? 'retry' : 'permanent',
    );
  }
  if (status !== 206) throw statusFailure(status, headers, version);
  if (/^multipart\//i.test(text(headers['content-type'])))
    throw new RequestFailure('the server answered one range with several parts', 'permanent');
  checkEncoding(headers);
  const range = text(headers['content-range']);
  const [, from, to, total] = /^bytes (\d+)-(\d+)\/(\d+|\*)$/i.exec(range) ?? [];
  const wrong = `the server answered bytes ${first}-${last} with Content-Range: ${quoted(range)}`;
  if (total === undefined) throw new RequestFailure(wrong, 'permanent');
  if (total === '*') throw new RequestFailure('the server does not send the size of the file', 'permanent');
  const size = Number(total);
  const answered = pin(size, headers);
  if (version && !isSame(version, size, headers)) throw new RequestFailure(CHANGED, 'permanent');
  if (Number(from) !== first || Number(to) !== last || !Number.isSafeInteger(size) || size <= last)
    throw new RequestFailure(wrong, 'permanent');
  const length = headers['content-length'];
  if (length !== undefined && Number(length) !== last - first + 1) {
    // A shorter body may be that of a proxy that gave up. A longer one cannot be right.
    const remedy = Number(length) < last - first + 1 ? 'retry' : 'permanent';
    throw new RequestFailure(
      `the server announced ${quoted(text(length))} bytes for a range of ${last - first + 1}`,
      remedy,
    );
  }
  return version ?? answered;
}

/** Checks that the body is the file's own bytes. @throws RequestFailure */
export function checkEncoding(headers: Headers): void {
  const encoding = text(headers['content-encoding']);
  if (encoding === '' || encoding.toLowerCase() === 'identity') return;
  throw new RequestFailure(
    `the server compressed the answer (Content-Encoding: ${quoted(encoding)}) although it was asked not to`,
    'permanent',
  );
}

function pin(size: number, headers: Headers): Version {
  const { etag } = headers;
  if (typeof etag === 'string' && /^"[^"]*"$/.test(etag))
    return { size, pinned: 'etag', value: etag, weak: undefined };
  const weak = weakTagOf(headers);
  const modified = headers['last-modified'];
  if (typeof modified === 'string' && modified !== '')
    return { size, pinned: 'last-modified', value: modified, weak };
  return { size, pinned: 'size', value: undefined, weak };
}

function weakTagOf({ etag }: Headers): string | undefined {
  return typeof etag === 'string' && /^W\/"[^"]*"$/.test(etag) ? etag : undefined;
}

function isSame({ size, pinned, value, weak }: Version, answered: number, headers: Headers): boolean {
  // Another server of the same name may send none.
  const tag = weakTagOf(headers);
  if (weak !== undefined && tag !== undefined && tag !== weak) return false;
  return answered === size && (pinned === 'size' || headers[pinned] === value);
}

/** For a status that is neither success nor redirect. */
export function statusFailure(status: number, headers: Headers, version?: Version): RequestFailure {
  const message = `the server answered ${named(status)}`;
  if (status === 412) return new RequestFailure(version ? CHANGED : message, 'permanent', {});
  if (status === 416) {
    const total = /^bytes \*\/(\d+)$/i.exec(text(headers['content-range']))?.[1];
    if (!version && total === '0') return isEmpty();
    const changed = version && total !== undefined && Number(total) !== version.size;
    return new RequestFailure(changed ? CHANGED : message, 'permanent');
  }
  if (status === 407) return new RequestFailure('the proxy demands a user name and password', 'permanent');
  if (status === 408 || status === 425 || status === 429 || status >= 500)
    return new RequestFailure(message, 'retry', { afterMs: retryAfter(headers) });
  // These also mean that a signed URL has expired: S3 answers 403, and 400 for an expired token.
  if ([400, 401, 403, 404, 410].includes(status)) return new RequestFailure(message, 'renew', { status });
  return new RequestFailure(message, 'permanent');
}

function isEmpty(): RequestFailure {
  return new RequestFailure('the file is empty, and an empty file cannot be mapped', 'permanent');
}

/** How long the server asks to wait, in milliseconds; the header is a number of seconds, or a date. */
export function retryAfter(headers: Headers, now = Date.now()): number {
  const value = text(headers['retry-after']).trim();
  const ms = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - now;
  return Number.isNaN(ms) ? 0 : Math.min(Math.max(ms, 0), LONGEST_AFTER_MS);
}

function named(status: number): string {
  return `${status} ${STATUS_CODES[status] ?? ''}`.trim();
}

/** A header that is repeated is an array; joined, it is not of the form that its check expects. */
function text(value: string | string[] | undefined): string {
  return Array.isArray(value) ? value.join(', ') : (value ?? '');
}

/** A value from the server for a message: short, and without control characters. */
function quoted(value: string): string {
  return JSON.stringify(value.slice(0, 80));
}
