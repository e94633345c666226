// A real browser for tests: Chromium as the system has it, driven by playwright-core.

import { existsSync } from 'node:fs';
import { type Browser, chromium } from 'playwright-core';
import { skip } from './harness.js';

const PROGRAM = process.env.UFFD_CHROMIUM ?? '/usr/bin/chromium';

/** Throws where there is none. Whoever opens it closes it. */
export async function openChromium(): Promise<Browser> {
  // Its own sandbox needs privileges that containers lack, and refuses root; and containers have little in /dev/shm.
  return chromium.launch({ executablePath: PROGRAM, args: ['--no-sandbox', '--disable-dev-shm-usage'] });
}

/** Calls `run` with a browser that is gone afterwards, whatever happens. Skips the test where there is none. */
export async function withChromium<T>(run: (browser: Browser) => Promise<T>): Promise<T> {
  if (!existsSync(PROGRAM)) skip('chromium is not installed');
  const browser = await openChromium();
  try {
    return await run(browser);
  } finally {
    await browser.close();
  }
}
