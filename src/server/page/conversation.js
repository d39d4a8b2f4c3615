// The conversation: turns of a message with its files and one or several answers, and the messages that they make.

const kMostFile = 8 << 20;  // bytes; a request takes 32 MiB

/** The text of a file that somebody attached. Throws an Error that says what is wrong with it. */
async function readFile(file) {
  if (file.size > kMostFile) {
    throw new Error(`${file.name}: ${bytesText(file.size)}, expected at most ${bytesText(kMostFile)}`);
  }
  let text;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name}: it is not text (UTF-8)`);
  }
  if (text.includes('\0')) throw new Error(`${file.name}: it is not text, it holds a NUL`);
  if (!text.trim()) throw new Error(`${file.name}: it is empty`);
  return { name: file.name, text };
}

/** What the model is told of a message with files. */
function contentOf(text, files) {
  const parts = files.map((file) => `File ${file.name}:\n\n${file.text.trimEnd()}\n`);
  if (text) parts.push(text);
  return parts.join('\n');
}

class Turn {
  constructor(text, files) {
    this.text = text;
    this.files = files;
    this.answers = [];
    this.chosen = 0;  // with whose text the conversation goes on
    this.reading = new AbortController();  // of the prompt, before several answers
    this.asked = element('div', { className: 'asked' });
    if (text) this.asked.append(element('p', { textContent: text }));
    for (const file of files) {
      this.asked.append(element('p', { className: 'note', textContent: `${file.name}, ${file.text.length} characters` }));
    }
    this.columns = element('div', { className: 'answers' });
    const shared = element('p', { className: 'note shared',
                                  textContent: 'They share the machine: each is slower than alone.' });
    this.node = element('section', { className: 'turn', 'aria-label': 'Turn' }, this.asked, this.columns, shared);
  }

  get running() { return this.answers.some((answer) => answer.running); }

  /** Puts other answers in the place of those that were there. */
  replace(answers) {
    this.stop();
    this.answers = answers;
    this.chosen = 0;
    this.reading = new AbortController();
    this.columns.replaceChildren(...answers.map((answer) => answer.node));
    const several = answers.length > 1;
    this.node.classList.toggle('compared', several);
    for (const answer of answers) answer.name.hidden = !several && answer.plan === 'server';
  }

  stop() {
    this.reading.abort();
    for (const answer of this.answers) if (answer.running) answer.stop();
  }

  messages() {
    const asked = { role: 'user', content: contentOf(this.text, this.files) };
    const answer = this.answers[this.chosen];
    return answer && answer.text ? [asked, { role: 'assistant', content: answer.text }] : [asked];
  }

  /** The buttons under the answers; `last`: it is the turn that may be answered anew. */
  drawActions(last, regenerate) {
    this.answers.forEach((answer, index) => {
      answer.node.classList.toggle('chosen', this.answers.length > 1 && index === this.chosen);
      const buttons = [];
      const add = (text, act, properties = {}) => {
        const button = element('button', { type: 'button', textContent: text, ...properties });
        button.addEventListener('click', act);
        buttons.push(button);
      };
      if (!this.running && last && index === 0) add('Regenerate', regenerate);
      if (!this.running && this.answers.length > 1) {
        add('Go on with this', () => {
          this.chosen = index;
          this.drawActions(last, regenerate);
          answer.actions.querySelector('[aria-pressed]').focus();
        }, { 'aria-pressed': String(index === this.chosen) });
      }
      answer.actions.replaceChildren(...buttons);
    });
  }
}

/** The messages of all turns before the last one, and the last one's question. */
function messagesOf(system, turns) {
  const messages = system ? [{ role: 'system', content: system }] : [];
  turns.forEach((turn, index) => {
    const own = turn.messages();
    messages.push(...(index === turns.length - 1 ? own.slice(0, 1) : own));
  });
  return messages;
}
