'use strict';
// The server's API: requests with the key, errors in its own words, streams event by event.

const $ = (id) => document.getElementById(id);

/** An element with properties, attributes (names with a dash) and children. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes('-')) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

class ApiFailure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const api = {
  // For this tab alone, so that a key does not stay on the machine.
  get key() { return sessionStorage.getItem('tidal.key') || ''; },
  set key(value) { value ? sessionStorage.setItem('tidal.key', value) : sessionStorage.removeItem('tidal.key'); },

  /** A response with status 200; `body` makes it a POST. Throws ApiFailure, with status 0 when nobody answers. */
  async ask(path, body, signal) {
    const headers = {};
    if (this.key) headers.Authorization = 'Bearer ' + this.key;
    if (body) headers['Content-Type'] = 'application/json';
    let response;
    try {
      response = await fetch(path, { method: body ? 'POST' : 'GET', headers, body: body && JSON.stringify(body), signal });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new ApiFailure(error instanceof TypeError && /header/i.test(error.message)
        ? 'the API key holds characters that none has' : 'the server does not answer', 0);
    }
    if (response.ok) return response;
    const answer = await response.json().catch(() => ({}));
    throw new ApiFailure(answer.error?.message || 'the server answers with ' + response.status, response.status);
  },

  async json(path) { return (await this.ask(path)).json(); },

  /** The events of a POST's stream, parsed. Throws ApiFailure for one that is an error, and for an end without [DONE]. */
  async *stream(path, body, signal) {
    const response = await this.ask(path, { ...body, stream: true }, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = '';
    try {
      while (true) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (held + value).split('\n');
        held = lines.pop();
        for (const line of lines) {
          if (!line.startsWith('data: ')) continue;
          if (line === 'data: [DONE]') return;
          const event = JSON.parse(line.slice(6));
          if (event.error) throw new ApiFailure(event.error.message, event.error.code);
          yield event;
        }
      }
    } catch (error) {
      if (error.name === 'AbortError' || error instanceof ApiFailure) throw error;
      throw new ApiFailure('the connection was lost', 0);
    }
    throw new ApiFailure('the answer broke off', 0);
  },
};

/** Waits until the model is there, saying so by `tell`; then {model, context, settings}. */
async function waitForModel(tell) {
  while (true) {
    try {
      await api.ask('/health');
      break;
    } catch (error) {
      tell(error.message);
      await new Promise((resolve) => setTimeout(resolve, error.status === 503 ? 300 : 1500));
    }
  }
  const model = (await api.json('/v1/models')).data[0];
  const props = await api.json('/props');
  return { model: model.id, context: props.default_generation_settings.n_ctx,
           settings: props.default_generation_settings.params, chat: props.has_chat_template };
}
