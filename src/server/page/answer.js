// One answer: asked for, shown as it comes, stopped, and what it cost.

const kShowEvery = 50;  // ms between two changes of the page

const kPlans = {
  server: {},
  full: { attention: 'full' },
  tidal: { attention: 'tidal' },
  sketch: { attention: 'sketch' },
  exact: { attention: 'sketch', exact: true },  // sketches draft
};

/** Numbers of people's size: 12300000 -> "12.3 MB". */
function bytesText(bytes) {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  for (; bytes >= 999.5 && unit < units.length - 1; bytes /= 1000) ++unit;
  return (unit ? bytes.toPrecision(3) : bytes) + ' ' + units[unit];
}

/** Has the server read the prompt once, so that several answers to it begin with the same numbers and none reads it anew. */
async function readPrompt(messages, signal) {
  await (await api.ask('/v1/chat/completions', { messages, max_tokens: 0, tidal: { attention: 'full' } }, signal)).json();
}

class Answer {
  /** `plan`: a key of kPlans. `changed` is called when it has begun, has more text, or has ended. */
  constructor(plan, changed) {
    this.plan = plan;
    this.changed = changed;
    this.text = '';
    this.thoughts = '';
    this.reads = null;
    this.running = false;
    this.abort = new AbortController();
    this.deltas = 0;
    this.timer = 0;
    this.make();
  }

  make() {
    this.name = element('h2', { textContent: this.plan, hidden: true });
    this.thinking = element('details', { className: 'thoughts', hidden: true },
                            element('summary', { textContent: 'Thoughts' }), element('div'));
    this.said = element('div', { className: 'said' });
    this.cost = element('p', { className: 'note cost' });
    this.actions = element('p', { className: 'actions' });
    this.node = element('article', { className: 'answer', 'aria-label': 'Answer by ' + this.plan }, this.name, this.thinking,
                        this.said, this.cost, this.actions);
    this.node.dataset.plan = this.plan;
  }

  /** What the server is asked for. */
  body(messages, settings) {
    const tidal = { ...kPlans[this.plan] };
    if (settings.budget && tidal.attention && tidal.attention !== 'full') {
      tidal.budget = /^\d+$/.test(settings.budget) ? Number(settings.budget) : settings.budget;
    }
    if (settings.reads) tidal.reads = true;
    const body = { messages, stream_options: { include_usage: true } };
    if (Object.keys(tidal).length) body.tidal = tidal;
    if (settings.temperature !== null) body.temperature = settings.temperature;
    if (settings.most !== null) body.max_tokens = settings.most;
    return body;
  }

  /** Asks and shows until the end; failures are in `failure`. Begins when `ready` is kept. */
  async run(messages, settings, ready) {
    this.running = true;
    this.began = performance.now();
    this.node.setAttribute('aria-busy', 'true');
    if (settings.reads) this.reads = new Reads();
    if (this.reads) this.reads.window = Number($('window').value);
    this.cost.textContent = 'Waiting';
    this.changed(this);
    let end = '';
    try {
      await ready;
      for await (const event of api.stream('/v1/chat/completions', this.body(messages, settings), this.abort.signal)) {
        this.take(event);
        if (event.usage) end = this.costText(event.usage, event.timings);
      }
    } catch (error) {
      if (error.name === 'AbortError') {
        end = `Stopped after ${this.seconds()} s`;
      } else {
        end = 'Failed: ' + error.message;
        this.cost.classList.add('wrong');
        this.failure = error;
      }
    }
    this.running = false;
    this.node.removeAttribute('aria-busy');
    this.show();
    if (this.finish === 'length') end += ' · cut off by the limit';
    this.cost.textContent = end;
    this.changed(this);
  }

  stop() { this.abort.abort(); }

  take(event) {
    if (event.tidal) {
      this.reads.take(event.tidal);
      panelOf(this);
    }
    const choice = event.choices[0];
    if (!choice) return this.showSoon();
    this.finish = choice.finish_reason || this.finish;
    this.thoughts += choice.delta.reasoning_content || '';
    const text = choice.delta.content || '';
    if (text || choice.delta.reasoning_content) {
      this.first = this.first || performance.now();
      this.deltas += 1;
    }
    this.text += text;
    this.showSoon();
  }

  showSoon() {
    if (this.timer) return;
    this.timer = setTimeout(() => this.show(), kShowEvery);
  }

  show() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.thinking.hidden = !this.thoughts;
    this.thinking.lastChild.textContent = this.thoughts;
    // What stands between fences is code; all of it goes in as text.
    const parts = this.text.split(/^```[^\n]*\n?/m);
    this.said.replaceChildren(...parts.map((part, index) => index % 2 ? element('pre', { textContent: part }) : part));
    if (this.running) this.cost.textContent = this.progress();
    this.changed(this);
  }

  seconds() { return ((performance.now() - this.began) / 1000).toFixed(1); }

  progress() {
    const reads = this.reads;
    if (!this.first) {
      const done = reads && reads.prompt ? `: ${Math.min(reads.length, reads.prompt)} of ${reads.prompt} tokens` : '';
      return 'Reading the prompt' + done;
    }
    // An event is a token, or what several make together.
    const rate = (this.deltas - 1) / ((performance.now() - this.first) / 1000);
    return this.deltas < 4 ? 'Answering' : `about ${rate.toFixed(1)} tok/s`;
  }

  costText(usage, timings) {
    const parts = [`${timings.predicted_per_second.toFixed(1)} tok/s`, `${usage.completion_tokens} tokens`,
                   `prompt ${usage.prompt_tokens}, ${usage.prompt_tokens_details.cached_tokens} of them cached`];
    if (this.first) parts.push(`first token after ${((this.first - this.began) / 1000).toFixed(2)} s`);
    if (timings.bytes_read > 0 && usage.completion_tokens > 1) {
      parts.push(bytesText(timings.bytes_read / (usage.completion_tokens - 1)) + ' read a token');
    }
    return parts.join(' · ');
  }
}
