// The module of the codec of traces, in an element of the page. Bundled in place of `#trace`.

import { bytesIn } from './embedded.js';

export default bytesIn('codec');
