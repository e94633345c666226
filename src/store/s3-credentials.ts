// Credentials for S3: from the environment, a profile file, or the metadata service of an EC2 instance (IMDSv2).

import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { HttpClient, type Outgoing } from './http-client.js';
import { StoreError } from './store.js';

export interface Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
  /** When they expire: milliseconds since 1970. Undefined: it is not known. */
  readonly expiresMs?: number;
}

/** Renewed so long before they expire. */
const EARLY_MS = 5 * 60_000;
const METADATA = 'http://169.254.169.254';
/** The service answers within milliseconds; on other machines nothing does. */
const METADATA_TIMEOUT_MS = 1000;
const METADATA_ATTEMPTS = 3;
const TOKEN_SECONDS = '21600';

export class CredentialChain {
  readonly #profile: string | undefined;
  #known: Credentials | undefined;
  #renewing: Promise<Credentials> | undefined;

  constructor(profile: string | undefined) {
    this.#profile = profile;
  }

  /** The credentials to sign with now. @throws StoreError if there are none */
  async current(): Promise<Credentials> {
    const { expiresMs = Number.POSITIVE_INFINITY } = this.#known ?? {};
    if (this.#known && expiresMs - Date.now() > EARLY_MS) return this.#known;
    this.#renewing ??= this.#renew().finally(() => {
      this.#renewing = undefined;
    });
    return this.#renewing;
  }

  /** The server has said that they are no longer valid. */
  expire(): void {
    this.#known = undefined;
  }

  async #renew(): Promise<Credentials> {
    try {
      this.#known = this.#profile === undefined ? fromEnvironment() : undefined;
      this.#known ??= fromProfile(this.#profile) ?? (await fromMetadata());
    } catch (error) {
      const { expiresMs = 0 } = this.#known ?? {};
      // The old ones are good for a while, and the next call tries again.
      if (!this.#known || expiresMs <= Date.now()) throw error;
    }
    return this.#known;
  }
}

function fromEnvironment(): Credentials | undefined {
  const { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN } = process.env;
  if (!AWS_ACCESS_KEY_ID || !AWS_SECRET_ACCESS_KEY) return undefined;
  return {
    accessKeyId: AWS_ACCESS_KEY_ID,
    secretAccessKey: AWS_SECRET_ACCESS_KEY,
    ...(AWS_SESSION_TOKEN && { sessionToken: AWS_SESSION_TOKEN }),
  };
}

function fromProfile(given: string | undefined): Credentials | undefined {
  const profile = given ?? process.env.AWS_PROFILE ?? 'default';
  const keys = { ...profileOf('config', profile), ...profileOf('credentials', profile) };
  const { aws_access_key_id, aws_secret_access_key, aws_session_token } = keys;
  if (aws_access_key_id && aws_secret_access_key) {
    return {
      accessKeyId: aws_access_key_id,
      secretAccessKey: aws_secret_access_key,
      ...(aws_session_token && { sessionToken: aws_session_token }),
    };
  }
  if (given === undefined && process.env.AWS_PROFILE === undefined) return undefined;
  throw new StoreError(
    'refused',
    `the profile ${JSON.stringify(profile)} has no aws_access_key_id and aws_secret_access_key; with single sign-on or ` +
      'roles, run: eval "$(aws configure export-credentials --format env)"',
  );
}

/** The region of a profile. */
export function regionOfProfile(given: string | undefined): string | undefined {
  return profileOf('config', given ?? process.env.AWS_PROFILE ?? 'default').region;
}

/** The lines `name = value` of a section of a file in ~/.aws. */
function profileOf(file: 'config' | 'credentials', profile: string): Record<string, string> {
  const variable = file === 'config' ? 'AWS_CONFIG_FILE' : 'AWS_SHARED_CREDENTIALS_FILE';
  const path = process.env[variable] ?? join(homedir(), '.aws', file);
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch {
    return {};
  }
  // The file `config` has sections named `profile NAME`, except the default one.
  const names =
    file === 'config' ? [`profile ${profile}`, ...(profile === 'default' ? [profile] : [])] : [profile];
  const found: Record<string, string> = {};
  let wanted = false;
  for (const line of text.split('\n')) {
    const [, section] = /^\s*\[\s*([^\]]+?)\s*\]/.exec(line) ?? [];
    if (section !== undefined) wanted = names.includes(section.replace(/\s+/g, ' '));
    const [, name, value] = /^([a-z_]+)\s*=\s*(.*?)\s*$/.exec(line) ?? [];
    if (wanted && name !== undefined && value !== undefined) found[name] = value;
  }
  return found;
}

/** From the metadata service of the instance: a token first, then the role's name, then its credentials. */
async function fromMetadata(): Promise<Credentials> {
  const none = (cause?: unknown): StoreError =>
    new StoreError(
      'refused',
      'there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, write them to ~/.aws/credentials, ' +
        'run on an instance with a role, or read anonymously',
      cause === undefined ? undefined : { cause },
    );
  const { AWS_EC2_METADATA_DISABLED, AWS_EC2_METADATA_SERVICE_ENDPOINT = METADATA } = process.env;
  if (AWS_EC2_METADATA_DISABLED?.toLowerCase() === 'true') throw none();
  if (!URL.canParse(AWS_EC2_METADATA_SERVICE_ENDPOINT)) throw none();
  const client = new HttpClient({
    proxy: 'none',
    timeoutMs: METADATA_TIMEOUT_MS,
    attempts: METADATA_ATTEMPTS,
  });
  const ask = async (
    method: Outgoing['method'],
    path: string,
    headers: Record<string, string>,
  ): Promise<string> => {
    const url = new URL(path, AWS_EC2_METADATA_SERVICE_ENDPOINT);
    const prepare = (): Outgoing => ({ method, url, headers });
    const errand = { place: 'the metadata service', most: 1 << 16, signal: undefined, prepare };
    return (await client.call(errand)).body.toString('utf8').trim();
  };
  try {
    const token = await ask('PUT', '/latest/api/token', {
      'x-aws-ec2-metadata-token-ttl-seconds': TOKEN_SECONDS,
    });
    const headers = { 'x-aws-ec2-metadata-token': token };
    const roles = '/latest/meta-data/iam/security-credentials/';
    const [role = ''] = (await ask('GET', roles, headers)).split('\n');
    return credentialsOf(JSON.parse(await ask('GET', roles + encodeURIComponent(role), headers)));
  } catch (error) {
    throw none(error);
  } finally {
    client.close();
  }
}

function credentialsOf(answer: Record<string, unknown>): Credentials {
  const { AccessKeyId, SecretAccessKey, Token, Expiration } = answer;
  if (typeof AccessKeyId !== 'string' || typeof SecretAccessKey !== 'string' || typeof Token !== 'string')
    throw new TypeError('the metadata service has answered without credentials');
  const expiresMs = Date.parse(String(Expiration));
  return {
    accessKeyId: AccessKeyId,
    secretAccessKey: SecretAccessKey,
    sessionToken: Token,
    ...(Number.isNaN(expiresMs) ? {} : { expiresMs }),
  };
}
