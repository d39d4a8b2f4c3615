// What one answer reads: its texts and steps as the events tell them, and how much the last tokens read of a position.

const kKept = 256;  // steps that are kept: as many as the longest window
const kLevels = 8;  // of shading; each is twice the share of the one below, the highest is more than half

class Reads {
  constructor() {
    this.prompt = 0;      // positions of it
    this.starts = [];     // position of each text
    this.texts = [];
    this.length = 0;      // positions with a text
    this.steps = [];      // the last ones, {position, sets, sinks, recent, positions, left}, or {position, all}
    this.count = 0;       // all steps
    this.last = null;     // step
    this.window = 16;
    this.sums = [];       // [position] shares of the steps in the window, added up
  }

  /** Takes the `tidal` object of an event. */
  take(event) {
    this.prompt = event.prompt;
    for (const given of event.texts) {
      const [text, positions] = Array.isArray(given) ? given : [given, 1];
      this.starts.push(this.length);
      this.texts.push(text);
      this.length += positions;
    }
    if (!event.reads) return;
    const step = event.reads;
    this.steps.push(step);
    this.count += 1;
    this.last = step;
    this.add(step, 1);
    if (this.steps.length > this.window) this.add(this.steps[this.steps.length - 1 - this.window], -1);
    if (this.steps.length > kKept) this.steps.shift();
  }

  add(step, sign) {
    if (step.all) return;
    for (const [position, sets] of step.positions) {
      this.sums[position] = (this.sums[position] || 0) + sign * sets / step.sets;
    }
  }

  look(window) {
    this.window = window;
    this.sums = [];
    for (const step of this.steps.slice(-window)) this.add(step, 1);
  }

  /** Steps that the shares are of. */
  get looked() { return Math.min(this.window, this.steps.length); }

  /** Whether the last step read it whatever its score. */
  always(position) {
    const step = this.last;
    return !!step && !step.all && (position < step.sinks || position > step.position - step.recent);
  }

  /** Share of the sets of the window's tokens that held the position, 0 to 1. */
  share(position) {
    const sum = this.sums[position];
    return sum > 1e-9 ? Math.min(1, sum / this.looked) : 0;
  }

  /** 0 for what was not read, else 1 to kLevels. */
  level(position) {
    const share = this.share(position);
    return share > 0 ? Math.max(1, Math.ceil(kLevels + Math.log2(share) - 1e-9)) : 0;
  }

  /** The text that holds a position. */
  textAt(position) {
    let low = 0, high = this.starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle] <= position) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** Positions of a text, [first, end). */
  extent(text) { return [this.starts[text], text + 1 < this.starts.length ? this.starts[text + 1] : this.length]; }

  /** How a text is shaded: the most that holds for any of its positions. */
  shade(text) {
    const [first, end] = this.extent(text);
    let level = 0;
    for (let position = first; position < end; ++position) {
      if (this.always(position)) return 'always';
      level = Math.max(level, this.level(position));
    }
    return level ? 'heat' + level : '';
  }

  /**
   * Up to `most` stretches of the prompt, [first, end) texts, and the most read position of each: those of which most
   * was read beyond what always is.
   */
  passages(most, tokens = 16) {
    const scores = new Map(), peaks = new Map();
    for (const key of Object.keys(this.sums)) {
      const position = Number(key);
      if (position >= Math.min(this.prompt, this.length) || this.always(position)) continue;
      const bucket = Math.floor(position / tokens);
      scores.set(bucket, (scores.get(bucket) || 0) + this.share(position));
      const peak = peaks.get(bucket);
      if (peak === undefined || this.share(position) > this.share(peak)) peaks.set(bucket, position);
    }
    const best = [...scores].filter(([, score]) => score > 1e-6).sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    const found = [];
    for (const [bucket] of best) {
      if (found.length === most) break;
      if (found.some((other) => Math.abs(other.bucket - bucket) < 2)) continue;
      const from = Math.max(0, bucket * tokens - tokens / 2);
      const to = Math.min(this.length - 1, (bucket + 1) * tokens + tokens / 2 - 1);
      found.push({ bucket, peak: peaks.get(bucket), first: this.textAt(from), end: this.textAt(to) + 1 });
    }
    return found;
  }
}
