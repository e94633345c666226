// The browser that tests drive: Chromium as the system has it.

import { type Browser, chromium } from 'playwright-core';

const PATH = process.env.UFFD_CHROMIUM ?? '/usr/bin/chromium';

/** Throws where there is none. Whoever opens it closes it. */
export async function openChromium(): Promise<Browser> {
  // Root has no sandbox, and containers have little in /dev/shm.
  return chromium.launch({ executablePath: PATH, args: ['--no-sandbox', '--disable-dev-shm-usage'] });
}
