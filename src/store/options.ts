// Options of stores, and their checks.

import { checkBoolean, checkInteger, checkOptions, invalidValue, wrongType } from '../errors/arguments.js';
import { checkTransport, type TransportOptions } from '../pager/http-description.js';

/** Whether a place is a URL, and no path. */
export function isUrl(place: string): boolean {
  return /^[a-z][a-z0-9+.-]*:\/\//i.test(place);
}

/** The default of `parallel`. */
export const PARALLEL = 8;

/** Options of a store. Those about servers are ignored by a folder. All are plain data. */
export interface StoreOptions extends TransportOptions {
  /** Most bytes a second, in both directions together. Default: no limit. */
  bytesPerSecond?: number;
  /** Another store, to read from what the first one does not have or cannot give. It is never written to. */
  fallback?: string;
  /** S3: the URL of the server. Default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or AWS. */
  endpoint?: string;
  /** S3: the region. Default: AWS_REGION, AWS_DEFAULT_REGION, the profile's, or us-east-1. */
  region?: string;
  /**
   * S3: whether the bucket is a part of the path instead of the host name. Default: yes with an endpoint of your own, and
   * for buckets with a dot in their name.
   */
  pathStyle?: boolean;
  /** S3: send requests without a signature. Default false. */
  anonymous?: boolean;
  /** S3: the section of the files in ~/.aws. Default: AWS_PROFILE, or `default`. */
  profile?: string;
}

/** Checks options, and copies them. @throws TypeError, RangeError */
export function checkStoreOptions(options: StoreOptions): StoreOptions {
  checkOptions(options, 'options');
  const { bytesPerSecond, pathStyle, anonymous } = options;
  if (bytesPerSecond !== undefined)
    checkInteger(bytesPerSecond, 'bytesPerSecond', 1, Number.MAX_SAFE_INTEGER);
  for (const [name, value] of Object.entries({ pathStyle, anonymous }))
    if (value !== undefined) checkBoolean(value, name);
  const texts = (['fallback', 'endpoint', 'region', 'profile'] as const).flatMap((name) => {
    const value = options[name];
    if (value === undefined) return [];
    if (typeof value !== 'string' || value === '') throw wrongType(name, 'a text that is not empty', value);
    return [[name, value]];
  });
  if (options.endpoint !== undefined) checkEndpoint('endpoint', options.endpoint);
  return {
    ...checkTransport(options),
    ...(bytesPerSecond !== undefined && { bytesPerSecond }),
    ...(pathStyle !== undefined && { pathStyle }),
    ...(anonymous !== undefined && { anonymous }),
    ...Object.fromEntries(texts),
  };
}

/** @throws TypeError */
export function checkEndpoint(name: string, value: string): URL {
  const url = URL.canParse(value) ? new URL(value) : undefined;
  if (url && /^https?:$/.test(url.protocol) && url.search === '' && url.username === '') return url;
  throw invalidValue(`${name} must be an http: or https: URL of a server, without a query and a user name`);
}
