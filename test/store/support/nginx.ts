// nginx of Debian, which serves a folder, for a test.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort } from '../../support/free-port.js';
import { leaveOut } from '../../support/harness.js';

/**
 * Calls `body` with the URL of an nginx.
 *
 * @param folder for its files; it serves the folder `store` in it
 * @param settings of the location, in its language
 */
export async function withNginx(
  folder: string,
  settings: string,
  body: (url: string) => Promise<void>,
): Promise<void> {
  const port = await freePort();
  mkdirSync(join(folder, 'nginx'), { recursive: true });
  const configuration = join(folder, 'nginx/nginx.conf');
  const paths = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
    .map((name) => `${name}_temp_path ${folder}/nginx/${name};`)
    .join(' ');
  writeFileSync(
    configuration,
    `daemon off; master_process off; pid ${folder}/nginx/pid; error_log stderr;
    ${process.getuid?.() === 0 ? 'user root;' : ''}
    events { worker_connections 64; }
    http { access_log off; ${paths} types { } default_type application/octet-stream;
      server { listen 127.0.0.1:${port}; location / { root ${folder}/store; ${settings} } } }`,
  );
  const child = spawn('nginx', ['-c', configuration, '-p', join(folder, 'nginx')], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` },
  });
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  const ended = once(child, 'close').catch(() => {});
  const failure = await Promise.race([
    once(child, 'error').then(() => true),
    once(child, 'spawn').then(() => false),
  ]).catch(() => true);
  if (failure) leaveOut('nginx is not installed');
  const kill = (): void => void child.kill('SIGKILL');
  process.once('exit', kill);
  try {
    while (!(await accepts(port))) {
      if (child.exitCode !== null) throw new Error(`nginx has ended: ${said}`);
      await sleep(10);
    }
    await body(`http://127.0.0.1:${port}`);
  } finally {
    process.off('exit', kill);
    kill();
    await ended;
  }
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.on('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}
