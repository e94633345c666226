// The answers of S3 that are XML: a page of a list, and errors. They are flat, so patterns find their elements.

import type { ListedObject } from './store.js';

export interface ListPage {
  readonly objects: readonly ListedObject[];
  /** For the next page; undefined: this is the last one. */
  readonly next: string | undefined;
}

const ENTITIES: Readonly<Record<string, string>> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'" };

/** The text of the first element of that name. */
export function elementOf(xml: string, name: string): string | undefined {
  const text = new RegExp(`<${name}>([^<]*)</${name}>`).exec(xml)?.[1];
  return text?.replace(/&(?:#(\d+)|#x([0-9a-f]+)|(\w+));/gi, (whole, decimal, hex, named) => {
    if (named !== undefined) return ENTITIES[named] ?? whole;
    return String.fromCodePoint(Number.parseInt(decimal ?? hex, decimal === undefined ? 16 : 10) & 0xffff);
  });
}

/**
 * A page of a list of version 2. Keys are without the prefix.
 *
 * @throws TypeError if it is not one
 */
export function parseListPage(xml: string, prefix: string): ListPage {
  const damaged = (): TypeError => new TypeError('the server has answered with no list of objects');
  if (!/<ListBucketResult[\s>]/.test(xml) || !xml.includes('</ListBucketResult>')) throw damaged();
  const encoded = elementOf(xml, 'EncodingType') === 'url';
  const objects = [...xml.matchAll(/<Contents>([\s\S]*?)<\/Contents>/g)].flatMap(([, contents = '']) => {
    const text = elementOf(contents, 'Key');
    const bytes = Number(elementOf(contents, 'Size') ?? Number.NaN);
    const modifiedMs = Date.parse(elementOf(contents, 'LastModified') ?? '');
    if (text === undefined || !Number.isSafeInteger(bytes) || Number.isNaN(modifiedMs)) throw damaged();
    const key = encoded ? decodeURIComponent(text.replaceAll('+', ' ')) : text;
    return key.startsWith(prefix) ? [{ key: key.slice(prefix.length), bytes, modifiedMs }] : [];
  });
  if (elementOf(xml, 'IsTruncated') !== 'true') return { objects, next: undefined };
  const next = elementOf(xml, 'NextContinuationToken');
  if (!next) throw damaged();
  return { objects, next };
}
