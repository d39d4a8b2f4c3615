#include "cli/run_generator.h"

#include "core/error.h"
#include "core/timer.h"
#include "text/utf8.h"

namespace tidal {

std::string Speed::summary() const {
  const auto rate = [](int64_t count, double seconds) {
    return seconds > 0 ? static_cast<double>(count) / seconds : 0;
  };
  const double per_token =
      decode_tokens > 0 ? static_cast<double>(decode_bytes) / static_cast<double>(decode_tokens) : 0;
  return fmt::format(
      "prefill {} tokens, {:.1f} tok/s; decode {} tokens, {:.1f} tok/s, {:.1f} MB read per token, {:.2f} GB/s",
      prefill_tokens, rate(prefill_tokens, prefill_seconds), decode_tokens, rate(decode_tokens, decode_seconds),
      per_token / 1e6, rate(decode_bytes, decode_seconds) / 1e9);
}

Generator::Generator(Engine& engine, const Tokenizer& tokenizer, Sampler& sampler)
    : engine_(engine), tokenizer_(tokenizer), sampler_(sampler), sequence_(engine.create()) {}

int Generator::room() const {
  return engine_.options().context - sequence_.length() - static_cast<int>(pending_.size());
}

void Generator::truncate(int length) {
  pending_.clear();
  sequence_.truncate(length);
}

Answer Generator::answer(std::span<const Token> prompt, int most, const Listener& listener) {
  const int before = sequence_.length();
  std::vector<Token> tokens = pending_;
  tokens.insert(tokens.end(), prompt.begin(), prompt.end());

  Answer answer;
  Timer timer;
  bool stopped = false;
  std::span<const float> logits = engine_.prefill(sequence_, tokens, [&](int done) {
    answer.speed.prefill_tokens = done;
    answer.speed.prefill_seconds = timer.seconds();
    listener.prefilled(done, static_cast<int>(tokens.size()), answer.speed.prefill_seconds);
    stopped = listener.stopped();
    return !stopped;
  });
  if (stopped) {
    sequence_.truncate(before);
    answer.end = AnswerEnd::NotStarted;
    return answer;
  }
  pending_.clear();
  sampler_.accept(prompt);
  sampler_.restart_grammar();

  Utf8Stream characters;
  const auto write = [&](const std::string& text) {
    if (text.empty()) return;
    answer.text += text;
    listener.text(text);
  };
  answer.end = AnswerEnd::Limit;
  for (int count = 0; most < 0 || count < most; ++count) {
    if (listener.stopped()) {
      answer.end = AnswerEnd::Interrupted;
      break;
    }
    if (count > 0) {
      if (room() < 0) {
        answer.end = AnswerEnd::ContextFull;
        break;
      }
      timer.restart();
      logits = engine_.decode(sequence_, pending_.front());
      pending_.clear();
      answer.speed.decode_seconds += timer.seconds();
      answer.speed.decode_bytes += engine_.decode_bytes(sequence_.length());
      ++answer.speed.decode_tokens;
    }
    timer.restart();
    const Token token = sampler_.sample(logits);
    if (count > 0) answer.speed.decode_seconds += timer.seconds();
    if (tokenizer_.is_end(token)) {
      answer.end = AnswerEnd::EndToken;
      break;
    }
    pending_.assign(1, token);
    write(characters.push(tokenizer_.piece(token)));
  }
  write(characters.finish());
  return answer;
}

}  // namespace tidal
