// What the library's threads are started with, where it is not in a bundle.

import { embed } from './embed.js';

embed({ entry: import.meta.url });
