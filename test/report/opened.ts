// A report in a real browser, as its reader has it: made by the command, opened from a file, and watched for whatever it
// should not do.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import * as assert from 'uvu/assert';
import { withChromium } from '../chromium.js';
import { inDirectory, uffd } from '../cli/command.js';
import { BASE, COPY, copied, page as pageAt, REGISTER, Script, size, WRITE } from '../trace/script.js';
import { P } from '../trace/support.js';

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
  /** What `uffd inspect --json` tells of the trace. */
  readonly told: Record<string, unknown>;
}

/** Makes the report of a trace, opens it, and calls `body`; the page must be silent and alone all the while. */
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
      const told = JSON.parse(inspected.stdout);
      assert.is(stderr === '', told.damage === undefined, stderr);
      await watched(browser, options, async (page) => {
        await page.goto(pathToFileURL(html).href);
        await page.locator('.figures').waitFor();
        await body({ page, told });
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

/** The line that says what is in view, once it is another than `before`. */
export async function inView(page: Page, before?: string): Promise<string> {
  return page.evaluate(async (old) => {
    let text = '';
    // A gesture goes on for some frames.
    for (let same = 0; same < 5; ) {
      await new Promise(requestAnimationFrame);
      const now = document.querySelector('#in-view')?.textContent ?? '';
      same = now !== '' && now !== old && now === text ? same + 1 : 0;
      text = now;
    }
    return text;
  }, before);
}

/** How many faults that line tells. */
export function faultsIn(line: string): number {
  return Number(/([\d,]+) faults?/.exec(line)?.[1]?.replaceAll(',', ''));
}
