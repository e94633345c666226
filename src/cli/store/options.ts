// Options that the commands about chunk stores share, and the indexes that these commands read.

import { accessSync, constants, readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import {
  type ChunkIndex,
  INDEX_BYTES_MOST,
  isUrl,
  parseIndex,
  readPlace,
  type StoreOptions,
} from '../../store/index.js';
import { byteCount, integer } from '../arguments.js';
import { Refusal, Usage } from '../exit.js';
import { outputStyleOf, printable, wrap } from '../text.js';
import { isSame } from '../traces.js';

/** The flags of `addStoreOptions`. */
export interface StoreFlags {
  fallback?: string;
  endpoint?: string;
  region?: string;
  profile?: string;
  anonymous?: boolean;
  pathStyle?: boolean;
  ca?: string;
  proxy?: string;
  timeout?: number;
  attempts?: number;
  parallel?: number;
  bandwidth?: number;
}

/** For the help of these commands: what a store is. */
export const STORE_HELP = `
Stores:
  FOLDER, http(s)://HOST/PATH or s3://BUCKET/PREFIX. It holds a file for each
  chunk, as casync and desync make it. A web server can be read, and written to
  if it accepts PUT, but not listed.

S3:
  Credentials come from --profile, else from AWS_ACCESS_KEY_ID and
  AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN), the files in ~/.aws, or the role of
  an EC2 instance, and are renewed while the command runs. --endpoint, or
  AWS_ENDPOINT_URL, names a server that is not AWS.
`;

/** Adds the options about a store's server, after those of the command. */
export function addStoreOptions(command: Command, reads: boolean): Command {
  if (reads) command.option('--fallback <STORE>', 'a store for what the first cannot give');
  return command
    .option('--endpoint <URL>', 'S3: the server (default: AWS)')
    .option('--region <NAME>', 'S3: the region (default: us-east-1)')
    .option('--profile <NAME>', 'S3: a section of the files in ~/.aws')
    .option('--anonymous', 'S3: do not sign requests')
    .option('--path-style', 'S3: the bucket is a part of the path')
    .option('--no-path-style', 'S3: the bucket is a part of the host name')
    .option('--ca <FILE>', 'trust these certificate authorities, too (PEM)')
    .option('--proxy <URL>', "an HTTP proxy; 'none' for none (default: HTTPS_PROXY, …)")
    .option('--timeout <S>', 'a request fails if nothing arrives for S seconds', integer(1, 86_400), 30)
    .option('--attempts <N>', 'how often a request is tried', integer(1, 1000), 5)
    .option('--parallel <N>', 'requests at once', integer(1, 256), 8)
    .option('--bandwidth <SIZE>', 'bytes a second at most, like 50M', byteCount(1024));
}

export function storeOptions(flags: StoreFlags): StoreOptions {
  const { fallback, endpoint, region, profile, anonymous, pathStyle, ca, proxy } = flags;
  const { timeout, attempts, parallel, bandwidth } = flags;
  return {
    ...(fallback !== undefined && { fallback }),
    ...(endpoint !== undefined && { endpoint }),
    ...(region !== undefined && { region }),
    ...(profile !== undefined && { profile }),
    ...(anonymous !== undefined && { anonymous }),
    ...(pathStyle !== undefined && { pathStyle }),
    ...(ca !== undefined && { ca: readFileSync(ca, 'utf8') }),
    ...(proxy !== undefined && { proxy }),
    ...(timeout !== undefined && { timeoutMs: timeout * 1000 }),
    ...(attempts !== undefined && { attempts }),
    ...(parallel !== undefined && { parallel }),
    ...(bandwidth !== undefined && { bytesPerSecond: bandwidth }),
  };
}

export interface ReadIndex {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly index: ChunkIndex;
}

/** Reads an index from a path or URL. @throws Refusal; IndexError, StoreError */
export async function readIndex(
  place: string,
  options: StoreOptions,
  signal?: AbortSignal,
): Promise<ReadIndex> {
  const name = printable(place.replace(/\?.*/, ''));
  let bytes: Uint8Array;
  try {
    bytes = await readPlace(place, INDEX_BYTES_MOST, options, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    throw new Refusal(`there is no index ${name}`);
  }
  return { name, bytes, index: parseIndex(bytes, name) };
}

/**
 * Checks, before a long work begins, that its output can be written and replaces none of its inputs.
 *
 * @throws Usage; Node's errors if the output's folder cannot be written to
 */
export function checkOutput(output: string, inputs: readonly string[]): void {
  const same = inputs.find((input) => isSame(input, output));
  if (same !== undefined) throw new Usage(`${printable(output)} is an input, and would be replaced`);
  if (!isUrl(output)) accessSync(dirname(resolve(output)), constants.W_OK);
}

/** Prints a sentence, wrapped to the width of a terminal. */
export function printLine(text: string): void {
  process.stdout.write(`${wrap(text, outputStyleOf(process.stdout).columns, '  ')}\n`);
}

/** A parser for commander: a time, like 90s, 30m, 24h or 7d; milliseconds. */
export function duration(text: string): number {
  const [, digits, unit = ''] = /^(\d{1,6})([smhd])$/.exec(text) ?? [];
  const seconds = { s: 1, m: 60, h: 3600, d: 86_400 }[unit];
  if (digits === undefined || seconds === undefined)
    throw new InvalidArgumentError('It must be a number with s, m, h or d, like 24h.');
  return Number(digits) * seconds * 1000;
}

/** Makes the parser of an option that may be given several times. */
export function collected(text: string, before: string[] = []): string[] {
  return [...before, text];
}
