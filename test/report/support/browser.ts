// A report in a real browser: the command makes it, the browser opens it from a file, and every console message and
// network request is an error.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import * as assert from 'uvu/assert';
import { inDirectory, uffd } from '../../cli/support/command.js';
import { withChromium } from '../../support/chromium.js';
import {
  BASE,
  COPY,
  copied,
  page as pageAt,
  REGISTER,
  Script,
  size,
  WRITE,
} from '../../trace/support/handwritten-trace.js';
import { P } from '../../trace/support/traces.js';

export const FAR = 1000;

/** Reads, writes, pages filled ahead and removed, in two regions, by two threads; a fault every millisecond. */
export function colorful(faults = 300): Uint8Array {
  const script = new Script().ioctl(1, REGISTER, 0n, [pageAt(FAR), size(100), 1n, 0n]);
  for (let index = 0; index < faults; index++) {
    const page = (index % 2) * FAR + ((index * 7) % 64);
    const time = 1000 * (index + 1);
    script.faults(time, [page, index % 3 === 0 ? WRITE : 0n, 100 + (index % 2)]);
    const pages = index % 10 === 0 ? 4 : 1;
    script.ioctl(time + 10 + index, COPY, 0n, ...copied(pageAt(page), size(pages), size(pages)));
    if (index % 10 === 9) script.removed(time + 600, 0x15, pageAt(page), pageAt(page + 6));
  }
  return script.bytes();
}

export const addressOf = (page: number): string => `0x${(BASE + BigInt(page * P)).toString(16)}`;

export interface Opened {
  readonly page: Page;
  /** The output of `uffd inspect --json` for the trace. */
  readonly summary: Record<string, unknown>;
}

/** Makes the report of a trace, opens it, and calls `body`. The page may print nothing and request nothing else. */
export async function opened(
  trace: Uint8Array,
  body: (opened: Opened) => Promise<void>,
  options: BrowserContextOptions = {},
): Promise<void> {
  await withChromium((browser) =>
    inDirectory(async (directory) => {
      const file = join(directory, 'run.trace');
      writeFileSync(file, trace);
      const html = join(directory, 'run.html');
      const { stderr } = await uffd(['report', file, '-o', html]);
      const inspected = await uffd(['inspect', file, '--json']);
      const summary = JSON.parse(inspected.stdout);
      assert.is(stderr === '', summary.damage === undefined, stderr);
      await watched(browser, options, async (page) => {
        await page.goto(pathToFileURL(html).href);
        await page.locator('.figures').waitFor();
        await body({ page, summary });
      });
    }),
  );
}

async function watched(
  browser: Browser,
  options: BrowserContextOptions,
  body: (page: Page) => Promise<void>,
): Promise<void> {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, ...options });
  const wrong: string[] = [];
  page.on('console', (message) => wrong.push(`console: ${message.text()}`));
  page.on('pageerror', (error) => wrong.push(`error: ${error.stack}`));
  const asked: string[] = [];
  page.on('request', (request) => asked.push(request.url()));
  await body(page);
  assert.equal(wrong, []);
  assert.equal(
    asked.filter((url) => !/^data:|^blob:/.test(url)).map((url) => new URL(url).protocol),
    ['file:'],
  );
}

/** The line that describes the view, after it differs from `before` and has settled. */
export async function inView(page: Page, before?: string): Promise<string> {
  return page.evaluate(async (old) => {
    let text = '';
    // A gesture lasts some frames.
    for (let same = 0; same < 5; ) {
      await new Promise(requestAnimationFrame);
      const now = document.querySelector('#in-view')?.textContent ?? '';
      same = now !== '' && now !== old && now === text ? same + 1 : 0;
      text = now;
    }
    return text;
  }, before);
}

/** The number of faults in that line. */
export function faultsIn(line: string): number {
  return Number(/([\d,]+) faults?/.exec(line)?.[1]?.replaceAll(',', ''));
}
