// A real browser for tests: Debian's Chromium, driven by playwright-core.

import { existsSync } from 'node:fs';
import { type Browser, chromium } from 'playwright-core';
import { skip } from './harness.js';

const PROGRAM = '/usr/bin/chromium';

/** Skips the test where there is no Chromium. Who opens it closes it. */
export function openChromium(): Promise<Browser> {
  if (!existsSync(PROGRAM)) skip('chromium is not installed');
  // Its own sandbox needs privileges that containers lack, and refuses root.
  return chromium.launch({ executablePath: PROGRAM, args: ['--no-sandbox'] });
}

/** Calls `run` with a browser that is gone afterwards, whatever happens. */
export async function withChromium<T>(run: (browser: Browser) => Promise<T>): Promise<T> {
  const browser = await openChromium();
  try {
    return await run(browser);
  } finally {
    await browser.close();
  }
}
