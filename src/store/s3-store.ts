// A store in a bucket of S3, or of a server that speaks its protocol.
//
// Requests are signed by the package aws4, which hashes synchronously: what uses crypto.subtle needs libuv's pool.

import { createHash } from 'node:crypto';
import aws4 from 'aws4';
import { RequestFailure } from '../pager/http-answer.js';
import { type Errand, HttpClient, type Incoming, type Outgoing } from './http-client.js';
import { checkEndpoint, PARALLEL, type StoreOptions } from './options.js';
import { CredentialChain, regionOfProfile } from './s3-credentials.js';
import { elementOf, parseListPage } from './s3-list.js';
import { checkKey, type ListedObject, type ObjectRange, type Room, type Store, StoreError } from './store.js';

const LIST_BYTES_MOST = 16 << 20;
const EMPTY = createHash('sha256').digest('hex');
/** Answers after which new credentials may help. */
const EXPIRED = ['ExpiredToken', 'ExpiredTokenException', 'TokenRefreshRequired', 'InvalidToken'];

export class S3Store implements Store {
  readonly name: string;
  readonly can = { range: true, put: true, list: true, delete: true };
  readonly parallel: number;
  readonly #client: HttpClient;
  readonly #credentials: CredentialChain | undefined;
  readonly #bucket: string;
  /** Empty, or with a slash at its end. */
  readonly #prefix: string;
  readonly #endpoint: URL | undefined;
  readonly #pathStyle: boolean;
  #region: string;
  /** Where a redirect has sent this bucket's requests. */
  #redirected: URL | undefined;

  /** `url`: s3://BUCKET or s3://BUCKET/PREFIX. @throws TypeError */
  constructor(url: string, options: StoreOptions) {
    const [, bucket, prefix = ''] = /^s3:\/\/([a-z0-9][\w.-]{1,254})(?:\/([^?#]*))?$/i.exec(url) ?? [];
    if (bucket === undefined)
      throw new StoreError('unable', `${url.slice(0, 200)} must be s3://BUCKET or s3://BUCKET/PREFIX`);
    const { env } = process;
    const { profile, anonymous = false } = options;
    const endpoint = options.endpoint ?? (env.AWS_ENDPOINT_URL_S3 || env.AWS_ENDPOINT_URL || undefined);
    this.#endpoint = endpoint === undefined ? undefined : checkEndpoint('the endpoint of S3', endpoint);
    const region = options.region ?? (env.AWS_REGION || env.AWS_DEFAULT_REGION || undefined);
    this.#region = region ?? regionOfProfile(profile) ?? 'us-east-1';
    this.#pathStyle = options.pathStyle ?? (endpoint !== undefined || bucket.includes('.'));
    this.#bucket = bucket;
    const trimmed = prefix.replace(/^\/+|\/+$/g, '');
    this.#prefix = trimmed === '' ? '' : `${trimmed}/`;
    this.name = `s3://${bucket}${trimmed && `/${trimmed}`}`;
    this.parallel = options.parallel ?? PARALLEL;
    this.#credentials = anonymous ? undefined : new CredentialChain(profile);
    this.#client = new HttpClient(options);
  }

  async get(key: string, most: number, signal?: AbortSignal, room?: Room): Promise<Uint8Array> {
    return (await this.#client.call(this.#errand('GET', key, most, signal), room)).body;
  }

  range(
    key: string,
    offset: number,
    length: number,
    version?: unknown,
    signal?: AbortSignal,
  ): Promise<ObjectRange> {
    return this.#client.range(this.#errand('GET', key, 0, signal), offset, length, version);
  }

  has(key: string, signal?: AbortSignal): Promise<boolean> {
    return this.#client.has(this.#errand('HEAD', key, Number.POSITIVE_INFINITY, signal));
  }

  writtenMs(key: string, signal?: AbortSignal): Promise<number | undefined> {
    return this.#client.writtenMs(this.#errand('HEAD', key, Number.POSITIVE_INFINITY, signal));
  }

  /** By a copy onto itself, which needs a change of its metadata. */
  async refresh(key: string, signal?: AbortSignal): Promise<boolean> {
    const errand = this.#errand('PUT', key, 1 << 20, signal, undefined, {
      'x-amz-copy-source': `/${this.#bucket}/${encodedPath(this.#prefix + key)}`,
      'x-amz-metadata-directive': 'REPLACE',
    });
    try {
      const { body } = await this.#client.call(errand);
      // S3 may find out that it cannot copy after it has answered 200.
      return /<CopyObjectResult[\s>]/.test(body.toString('utf8'));
    } catch (error) {
      if (error instanceof StoreError && ['missing', 'refused'].includes(error.kind)) return false;
      throw error;
    }
  }

  async put(key: string, bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    await this.#client.call(this.#errand('PUT', key, 1 << 20, signal, bytes));
  }

  async *list(signal?: AbortSignal): AsyncGenerator<ListedObject> {
    let next: string | undefined;
    do {
      const query = new URLSearchParams({
        'list-type': '2',
        'encoding-type': 'url',
        prefix: this.#prefix,
        ...(next !== undefined && { 'continuation-token': next }),
      });
      const answer = await this.#client.call({
        place: this.name,
        most: LIST_BYTES_MOST,
        signal,
        prepare: () => this.#signed('GET', '', `?${query}`.replaceAll('+', '%20')),
        again: (refused) => this.#again(refused),
      });
      const page = this.#page(answer.body.toString('utf8'));
      yield* page.objects;
      next = page.next;
    } while (next !== undefined);
  }

  #page(xml: string): ReturnType<typeof parseListPage> {
    try {
      return parseListPage(xml, this.#prefix);
    } catch (cause) {
      throw new StoreError('failed', `${this.name}: ${(cause as Error).message}`, { cause });
    }
  }

  async delete(key: string, signal?: AbortSignal): Promise<void> {
    await this.#client.call(this.#errand('DELETE', key, 1 << 20, signal));
  }

  async sync(): Promise<void> {}

  close(): void {
    this.#client.close();
  }

  #errand(
    method: Outgoing['method'],
    key: string,
    most: number,
    signal: AbortSignal | undefined,
    body?: Uint8Array,
    more?: Record<string, string>,
  ): Errand {
    checkKey(key);
    return {
      place: `${this.name}/${key}`,
      most,
      signal,
      prepare: () => this.#signed(method, this.#prefix + key, '', body, more),
      again: (answer) => this.#again(answer),
    };
  }

  /** The URL of the bucket. */
  #base(): URL {
    if (this.#redirected) return this.#redirected;
    const end = this.#region.startsWith('cn-') ? 'amazonaws.com.cn' : 'amazonaws.com';
    const base = new URL(this.#endpoint ?? `https://s3.${this.#region}.${end}`);
    if (!this.#pathStyle) base.hostname = `${this.#bucket}.${base.hostname}`;
    const path = base.pathname.replace(/\/+$/, '');
    base.pathname = this.#pathStyle ? `${path}/${this.#bucket}` : path;
    return base;
  }

  async #signed(
    method: Outgoing['method'],
    key: string,
    query: string,
    body?: Uint8Array,
    more?: Record<string, string>,
  ): Promise<Outgoing> {
    const base = this.#base();
    const path = `${base.pathname.replace(/\/$/, '')}/${encodedPath(key)}`;
    // Without a slash after it, a bucket in the path is listed, too.
    const trimmed = key === '' && this.#pathStyle ? path.replace(/\/$/, '') : path;
    const url = new URL(trimmed + query, base.origin);
    const headers: Record<string, string> = {
      host: url.host,
      'x-amz-content-sha256': body ? createHash('sha256').update(body).digest('hex') : EMPTY,
      ...(body && { 'content-type': 'application/octet-stream' }),
      ...more,
    };
    const credentials = await this.#credentials?.current();
    const signed = credentials
      ? aws4.sign(
          { method, headers, path: url.pathname + url.search, service: 's3', region: this.#region },
          { ...credentials },
        ).headers
      : headers;
    const { host: _, ...rest } = signed as Record<string, string>;
    return { method, url, headers: { ...rest, 'user-agent': 'userfaultfd' }, ...(body && { body }) };
  }

  /** What S3's own errors mean. */
  #again({ status, headers, body, redirect }: Incoming): boolean {
    const xml = body.toString('utf8');
    const [code, message] = [elementOf(xml, 'Code'), elementOf(xml, 'Message')];
    const region = headers['x-amz-bucket-region'] ?? elementOf(xml, 'Region');
    if (typeof region === 'string' && /^[\w-]{1,64}$/.test(region) && region !== this.#region) {
      this.#region = region;
      return true;
    }
    if (status === 307 && redirect !== undefined && URL.canParse(redirect)) return this.#follow(redirect);
    if (code !== undefined && EXPIRED.includes(code)) {
      this.#credentials?.expire();
      return this.#credentials !== undefined;
    }
    if (code === undefined) return false;
    const said = `the server answered ${code}${message === undefined ? '' : `: ${message.slice(0, 200)}`}`;
    const passing = status >= 500 || status === 429 || ['RequestTimeout', 'SlowDown'].includes(code);
    // That there is no bucket says nothing about the object.
    const about = code === 'NoSuchBucket' ? {} : { status };
    throw new RequestFailure(said, passing ? 'retry' : 'permanent', about);
  }

  /** A bucket that is new is reached at another host for a while. Only the same bucket on AWS is followed. */
  #follow(redirect: string): boolean {
    const { protocol, hostname, origin } = new URL(redirect);
    const same = hostname.startsWith(`${this.#bucket}.`) && /\.amazonaws\.com(\.cn)?$/.test(hostname);
    if (protocol !== 'https:' || !same) return false;
    this.#redirected = new URL(origin);
    return true;
  }
}

/** As S3 signs it: all is escaped but letters, digits, and - . _ ~ / */
function encodedPath(key: string): string {
  return key
    .split('/')
    .map(encodeURIComponent)
    .join('/')
    .replace(/[!'()*]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`);
}
