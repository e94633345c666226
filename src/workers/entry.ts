// The entry point of the library's threads outside of a bundle.

import { embed } from '../embed.js';

embed({ entry: import.meta.url });
