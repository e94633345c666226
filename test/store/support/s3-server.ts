// An S3 server that checks signatures: moto with authentication by IAM. Also makes a user, a bucket, and keys.

import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { leaveOut } from '../../support/harness.js';

/** Where .ci/run installs it: a virtual environment of Python. */
const MOTO = process.env.UFFD_MOTO ?? join(tmpdir(), 'uffd-moto');
/** Requests before authentication: making a user, a policy, keys and a bucket. */
const SETUP_ACTIONS = '4';
export const BUCKET = 'snapshots';

export interface S3Server {
  readonly endpoint: string;
  /** Variables that a process needs to use it. */
  readonly env: NodeJS.ProcessEnv;
}

const AUTHORIZATION =
  'AWS4-HMAC-SHA256 Credential=none/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=none';

/** Calls `body` with a server that has an empty bucket. Skips the test if moto is not installed. */
export async function withS3(body: (server: S3Server) => Promise<void>): Promise<void> {
  const program = join(MOTO, 'bin/moto_server');
  if (!existsSync(program)) leaveOut(`there is no moto in ${MOTO}: see .ci/run`);
  const child = spawn(program, ['-H', '127.0.0.1', '-p', '0'], {
    env: { ...process.env, INITIAL_NO_AUTH_ACTION_COUNT: SETUP_ACTIONS, PYTHONUNBUFFERED: '1' },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const kill = (): void => void child.kill('SIGKILL');
  process.once('exit', kill);
  try {
    const endpoint = await listening(child);
    const keys = await makeUser(endpoint);
    const made = await fetch(`${endpoint}/${BUCKET}`, { method: 'PUT' });
    if (!made.ok) throw new Error(`the bucket was not made: ${made.status}`);
    const env = {
      AWS_ENDPOINT_URL: endpoint,
      AWS_ACCESS_KEY_ID: keys.id,
      AWS_SECRET_ACCESS_KEY: keys.secret,
      AWS_EC2_METADATA_DISABLED: 'true',
      NO_PROXY: '127.0.0.1',
    };
    await body({ endpoint, env });
  } finally {
    process.off('exit', kill);
    kill();
  }
}

async function listening(child: ChildProcess): Promise<string> {
  let said = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (text: string) => {
      said += text;
      child.emit('said');
    });
  }
  return new Promise((resolve, reject) => {
    child.on('said', () => {
      const found = /Running on (http:\/\/127\.0\.0\.1:\d+)/.exec(said);
      if (found) resolve(found[1] as string);
    });
    child.on('error', reject);
    child.on('exit', () => reject(new Error(`moto has ended: ${said}`)));
  });
}

async function makeUser(endpoint: string): Promise<{ id: string; secret: string }> {
  const ask = async (action: Record<string, string>): Promise<string> => {
    const answer = await fetch(endpoint, {
      method: 'POST',
      headers: { authorization: AUTHORIZATION },
      body: new URLSearchParams({ Version: '2010-05-08', UserName: 'tester', ...action }),
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${action.Action}: ${answer.status} ${text}`);
    return text;
  };
  await ask({ Action: 'CreateUser' });
  const PolicyDocument = JSON.stringify({
    Version: '2012-10-17',
    Statement: [{ Effect: 'Allow', Action: 's3:*', Resource: '*' }],
  });
  await ask({ Action: 'PutUserPolicy', PolicyName: 'all', PolicyDocument });
  const made = await ask({ Action: 'CreateAccessKey' });
  const of = (name: string): string => new RegExp(`<${name}>([^<]+)</${name}>`).exec(made)?.[1] ?? '';
  return { id: of('AccessKeyId'), secret: of('SecretAccessKey') };
}
