#include "server/api/request.h"

#include <charconv>
#include <chrono>
#include <limits>
#include <random>

#include "core/error.h"
#include "server/error.h"
#include "text/json_schema.h"

namespace tidal::server {
namespace {

constexpr double kMostNumber = 1e6;
constexpr size_t kMostStops = 256;
constexpr size_t kMostGrammar = size_t{64} << 10;  // bytes: its rules may call each other, all of them
constexpr int64_t kMostTokens = std::numeric_limits<int64_t>::max() / 2;
constexpr float kImpossible = -std::numeric_limits<float>::infinity();

void read_numbers(const Fields& fields, int context, SamplerOptions& sampler) {
  const auto take = [&](const char* name, float& to, double least, double most) {
    if (const auto given = fields.number(name, least, most)) to = static_cast<float>(*given);
  };
  take("temperature", sampler.temperature, 0, kMostNumber);
  take("top_p", sampler.top_p, 0, 1);
  take("min_p", sampler.min_p, 0, 1);
  take("repeat_penalty", sampler.repeat_penalty, 1e-6, kMostNumber);
  take("frequency_penalty", sampler.frequency_penalty, -kMostNumber, kMostNumber);
  take("presence_penalty", sampler.presence_penalty, -kMostNumber, kMostNumber);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (const auto given = fields.integer("top_k", -1, kMost)) sampler.top_k = static_cast<int>(*given);
  if (const auto given = fields.integer("repeat_last_n", -1, kMost)) {
    sampler.repeat_last_n = *given < 0 ? context : static_cast<int>(*given);
  }
  // Clients' random numbers have up to 64 bits; -1 asks for another one every time.
  if (const auto given = fields.integer("seed", std::numeric_limits<int64_t>::min() / 2, kMostTokens)) {
    sampler.seed = static_cast<uint32_t>(*given);
  }
  if (const auto given = fields.boolean("ignore_eos")) sampler.ignore_end = *given;
}

/// The grammar itself, or a schema that becomes one.
void read_grammar(const Fields& fields, SamplerOptions& sampler) {
  if (const auto given = fields.string("grammar")) {
    if (given->size() > kMostGrammar) {
      refuse("grammar", "'grammar': it has {} bytes, expected at most {}", given->size(), kMostGrammar);
    }
    sampler.grammar = *given;
  }
  const Json* schema = fields.object("json_schema");
  if (!schema) return;
  if (fields.find("grammar")) refuse("json_schema", "'json_schema': give either this or a grammar, not both");
  try {
    sampler.grammar = grammar_of_schema(dump(*schema));
  } catch (const Error& error) {
    refuse("json_schema", "'json_schema': {}", error.what());
  }
}

/// {"token": bias} as OpenAI has it, or [[token, bias]], where false forbids the token.
void read_biases(const Fields& fields, int vocab, SamplerOptions& sampler) {
  const Json* given = fields.find("logit_bias");
  if (!given) return;
  if (!given->is_object() && !given->is_array()) refuse("logit_bias", "'logit_bias': expected an object or an array");
  const auto add = [&](int64_t token, const Json& bias) {
    if (token < 0 || token >= vocab) {
      refuse("logit_bias", "'logit_bias': token {} is outside the vocabulary of {}", token, vocab);
    }
    if (bias.is_boolean() && !bias.get<bool>()) {
      sampler.logit_bias.emplace_back(static_cast<Token>(token), kImpossible);
      return;
    }
    const double number = bias.is_number() ? bias.get<double>() : std::nan("");
    if (!(number >= -kMostNumber && number <= kMostNumber)) {
      refuse("logit_bias", "'logit_bias': the bias of token {} is no number from {} to {}", token, -kMostNumber,
             kMostNumber);
    }
    sampler.logit_bias.emplace_back(static_cast<Token>(token), static_cast<float>(number));
  };
  for (const auto& [name, value] : given->items()) {
    if (given->is_array()) {
      if (!value.is_array() || value.size() != 2 || !value[0].is_number_integer()) {
        refuse("logit_bias", "'logit_bias': expected pairs of a token and a number");
      }
      add(value[0].get<int64_t>(), value[1]);
      continue;
    }
    int64_t token = -1;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), token);
    if (error != std::errc() || end != name.data() + name.size()) {
      refuse("logit_bias", "'logit_bias': '{}' given, expected the number of a token", name.substr(0, 60));
    }
    add(token, value);
  }
}

/// {"attention", "budget", "exact", "reads"}
void read_plan(const Fields& fields, const Service& service, Generation& generation) {
  const Json* object = fields.object("tidal");
  if (!object) return;
  const Fields tidal(*object, fields.path("tidal."));
  const std::string attention = tidal.string("attention").value_or("");
  std::string budget;
  if (const Json* given = tidal.find("budget")) {
    budget = given->is_number_integer() ? std::to_string(given->get<int64_t>()) : text_of(*given, tidal.path("budget"));
  }
  if (!attention.empty() || !budget.empty()) {
    try {
      generation.plan = service.parts().make_plan(attention, budget);
    } catch (const Error& error) {
      refuse("tidal", "'tidal': {}", error.what());
    }
  }
  if (const Json* exact = tidal.find("exact"); exact && exact->is_boolean()) {
    generation.exact = exact->get<bool>() ? kDefaultDrafts : 0;
  } else if (const auto drafts = tidal.integer("exact", 0, 64)) {
    generation.exact = static_cast<int>(*drafts);
  }
  generation.reads = tidal.boolean("reads").value_or(false);
  if (generation.exact > 0 && attention == "full") {
    refuse("tidal.exact", "'tidal.exact': drafts are sparse attention's, so attention full leaves none");
  }
}

}  // namespace

std::vector<std::string> strings_of(const Fields& fields, const std::string& name, size_t most) {
  std::vector<std::string> texts;
  const Json* given = fields.find(name);
  if (!given) return texts;
  if (!given->is_array()) return {text_of(*given, fields.path(name))};
  if (given->size() > most) {
    refuse(fields.path(name), "'{}': {} given, expected at most {}", fields.path(name), given->size(), most);
  }
  for (size_t i = 0; i < given->size(); ++i) {
    texts.push_back(text_of((*given)[i], fmt::format("{}[{}]", fields.path(name), i)));
  }
  return texts;
}

Generation generation_from(const Fields& fields, const Service& service) {
  Generation generation;
  generation.sampler = service.parts().sampler;
  generation.exact = service.parts().exact;
  read_numbers(fields, service.parts().engine.options().context, generation.sampler);
  read_grammar(fields, generation.sampler);
  read_biases(fields, service.tokenizer().vocab_size(), generation.sampler);
  generation.stops = strings_of(fields, "stop", kMostStops);
  for (const char* name : {"n_predict", "max_tokens", "max_completion_tokens"}) {
    if (const auto given = fields.integer(name, -1, kMostTokens)) generation.most = *given;
  }
  generation.use_cache = fields.boolean("cache_prompt").value_or(true);
  read_plan(fields, service, generation);
  return generation;
}

Json usage(const std::vector<Ending>& endings) {
  int64_t answers = 0;
  for (const Ending& ending : endings) answers += ending.tokens;
  const JobReport& first = endings.front().report;
  return {{"prompt_tokens", first.prompt_tokens},
          {"completion_tokens", answers},
          {"total_tokens", first.prompt_tokens + answers},
          {"prompt_tokens_details", {{"cached_tokens", first.cached_tokens}}}};
}

Json timings(const Ending& ending) {
  const JobReport& report = ending.report;
  const auto add = [](Json& to, const std::string& name, int64_t count, double seconds) {
    to[name + "_n"] = count;
    to[name + "_ms"] = 1e3 * seconds;
    to[name + "_per_token_ms"] = count > 0 ? 1e3 * seconds / static_cast<double>(count) : 0;
    to[name + "_per_second"] = seconds > 0 ? static_cast<double>(count) / seconds : 0;
  };
  Json json{{"cache_n", report.cached_tokens}};
  add(json, "prompt", report.prompt_tokens - report.cached_tokens, report.prefill_seconds);
  add(json, "predicted", ending.tokens, report.decode_seconds);
  json["queue_ms"] = 1e3 * report.queue_seconds;
  json["bytes_read"] = report.decode_bytes;
  return json;
}

const char* finish_reason(const Ending& ending) { return ending.natural() ? "stop" : "length"; }

std::string new_id(const char* prefix) {
  thread_local std::mt19937_64 random(std::random_device{}());
  return fmt::format("{}{:016x}{:016x}", prefix, random(), random());
}

int64_t now() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace tidal::server
