#include "generation/generator.h"

#include <algorithm>
#include <limits>

#include "core/error.h"
#include "core/timer.h"
#include "core/utf8.h"

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

std::string summary(const ExactStatistics& statistics) {
  const auto counts = [](const DraftCounts& drafts) {
    return fmt::format("{} of {} ({:.0f} %)", drafts.accepted, drafts.tried, 100 * drafts.acceptance());
  };
  const double rounds = static_cast<double>(std::max<int64_t>(statistics.rounds, 1));
  return fmt::format("exact: accepted {} sparse drafts, {} copied from the text; {:.2f} tokens a round",
                     counts(statistics.sparse), counts(statistics.copied),
                     1 + static_cast<double>(statistics.all().accepted) / rounds);
}

Generator::Generator(Engine& engine, const Tokenizer& tokenizer, Sampler& sampler)
    : engine_(engine),
      tokenizer_(tokenizer),
      sampler_(sampler),
      chooser_(sampler, tokenizer),
      sequence_(engine.create()) {}

int Generator::room() const {
  return engine_.options().context - sequence_.length() - static_cast<int>(pending_.size());
}

void Generator::resume(Sequence sequence) {
  pending_.clear();
  sequence_ = std::move(sequence);
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
  int count = 0;
  // False for a token that ends the answer.
  const auto take = [&](Token token) {
    if (tokenizer_.is_end(token)) {
      answer.end = AnswerEnd::EndToken;
      return false;
    }
    ++count;
    pending_.assign(1, token);
    write(characters.push(tokenizer_.piece(token)));
    return true;
  };
  const int64_t bytes_before = exact_ ? exact_->statistics().bytes : 0;
  bool going = true;
  while (going && (most < 0 || count < most)) {
    if (listener.stopped()) {
      answer.end = AnswerEnd::Interrupted;
      break;
    }
    if (count == 0) {
      going = take(sampler_.sample(logits));
      continue;
    }
    if (room() < 0) {
      answer.end = AnswerEnd::ContextFull;
      break;
    }
    timer.restart();
    const std::span<const Token> tokens = decode(most < 0 ? std::numeric_limits<int>::max() : most - count);
    answer.speed.decode_seconds += timer.seconds();
    answer.speed.decode_tokens += static_cast<int64_t>(tokens.size());
    answer.speed.decode_bytes += engine_.decode_bytes(sequence_.length());
    for (const Token token : tokens) going = going && take(token);
  }
  if (exact_) answer.speed.decode_bytes = exact_->statistics().bytes - bytes_before;
  write(characters.finish());
  return answer;
}

std::span<const Token> Generator::decode(int most) {
  const Token token = pending_.front();
  const int before = sequence_.length();
  try {
    std::span<const Token> tokens;
    if (exact_) {
      tokens = exact_->advance(sequence_, token, most, chooser_);
    } else {
      const int likely = sampler_.likely();
      chosen_ = likely > 0 ? sampler_.sample(engine_.decode(sequence_, token, likely))
                           : sampler_.sample(engine_.decode(sequence_, token));
      tokens = {&chosen_, 1};
    }
    pending_.clear();
    return tokens;
  } catch (...) {
    if (sequence_.length() > before) pending_.clear();  // it is in the cache
    throw;
  }
}

}  // namespace tidal
