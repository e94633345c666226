/** The page of a report as it was built: its script, and its style. */
export declare const page: string;
export declare const style: string;
