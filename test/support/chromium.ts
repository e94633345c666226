// A real browser for tests: the system's Chromium, driven by playwright-core.

import { existsSync } from 'node:fs';
import { type Browser, chromium } from 'playwright-core';
import { skip } from './harness.js';

const PROGRAM = process.env.UFFD_CHROMIUM ?? '/usr/bin/chromium';

/** Throws if Chromium is missing. The caller closes it. */
export async function openChromium(): Promise<Browser> {
  // Chromium's sandbox needs privileges that containers lack, and refuses root. Containers have a small /dev/shm.
  return chromium.launch({ executablePath: PROGRAM, args: ['--no-sandbox', '--disable-dev-shm-usage'] });
}

/** Calls `run` with a browser, which is closed afterwards in any case. Skips the test if Chromium is not installed. */
export async function withChromium<T>(run: (browser: Browser) => Promise<T>): Promise<T> {
  if (!existsSync(PROGRAM)) skip('chromium is not installed');
  const browser = await openChromium();
  try {
    return await run(browser);
  } finally {
    await browser.close();
  }
}
