// GET /v1/models, /props, /slots and /metrics: what the server is and does.
#include <fmt/core.h>

#include "server/api/apis.h"
#include "server/api/request.h"

namespace tidal::server {
namespace {

/// One metric in Prometheus' text format.
void add(std::string& text, const char* name, const char* type, const char* help, double value) {
  text += fmt::format("# HELP tidal:{0} {1}\n# TYPE tidal:{0} {2}\ntidal:{0} {3}\n", name, help, type, value);
}

}  // namespace

void models(Service& service, const ExchangePointer& exchange) {
  const Hyperparameters& hp = service.parts().engine.model().hp;
  const Json model{{"id", service.parts().model},
                   {"object", "model"},
                   {"created", now() - static_cast<int64_t>(service.uptime())},
                   {"owned_by", "tidal"},
                   {"meta",
                    {{"n_vocab", hp.vocab},
                     {"n_ctx_train", hp.context},
                     {"n_ctx", service.context()},
                     {"n_embd", hp.width},
                     {"size", service.parts().engine.model().file_bytes}}}};
  respond(exchange, {{"object", "list"}, {"data", Json::array({model})}});
}

void props(Service& service, const ExchangePointer& exchange) {
  const ServiceParts& parts = service.parts();
  const SamplerOptions& sampler = parts.sampler;
  const Json settings{{"n_ctx", service.context()},
                      {"params",
                       {{"seed", sampler.seed},
                        {"temperature", sampler.temperature},
                        {"top_k", sampler.top_k},
                        {"top_p", sampler.top_p},
                        {"min_p", sampler.min_p},
                        {"repeat_penalty", sampler.repeat_penalty},
                        {"repeat_last_n", sampler.repeat_last_n}}}};
  respond(exchange, {{"model_alias", parts.model},
                     {"build_info", "tidal-" TIDAL_VERSION},
                     {"total_slots", parts.engine.options().sequences},
                     {"default_generation_settings", settings},
                     {"modalities", {{"vision", false}, {"audio", false}}},
                     {"has_chat_template", parts.tokenizer.has_chat_template()}});
}

void slots(Service& service, const ExchangePointer& exchange) {
  // Sequences have no places of their own: as many are busy as run.
  const int running = service.state().running;
  Json all = Json::array();
  for (int i = 0; i < service.parts().engine.options().sequences; ++i) {
    all.push_back({{"id", i}, {"n_ctx", service.context()}, {"is_processing", i < running}});
  }
  respond(exchange, all);
}

void metrics(Service& service, const ExchangePointer& exchange) {
  const SchedulerState state = service.state();
  std::string text;
  const auto counter = [&](const char* name, const char* help, auto value) {
    add(text, name, "counter", help, static_cast<double>(value));
  };
  const auto gauge = [&](const char* name, const char* help, auto value) {
    add(text, name, "gauge", help, static_cast<double>(value));
  };
  counter("answers_total", "Answers that have ended.", state.jobs);
  counter("prompt_tokens_total", "Prompt tokens that were computed.", state.prompt_tokens - state.cached_tokens);
  counter("cached_tokens_total", "Prompt tokens that the prefix cache held.", state.cached_tokens);
  counter("tokens_predicted_total", "Tokens that were decoded.", state.decoded_tokens);
  counter("prompt_seconds_total", "Time of steps with prompt tokens.", state.prefill_seconds);
  counter("tokens_predicted_seconds_total", "Time of steps that only decoded.", state.decode_seconds);
  counter("preemptions_total", "Sequences that had to make room and were computed again.", state.preemptions);
  gauge("requests_processing", "Answers in progress.", state.running);
  gauge("requests_deferred", "Answers that wait.", state.waiting);
  gauge("kv_blocks", "Blocks of 64 positions in the cache.", state.blocks);
  gauge("kv_blocks_free", "Blocks that hold nothing.", state.free_blocks);
  gauge("kv_blocks_prefix", "Blocks that the prefix cache holds.", state.cached_blocks);
  gauge("kv_window_blocks", "Blocks of layers that keep their window only.", state.window_blocks);
  gauge("kv_window_blocks_free", "Those of them that hold nothing.", state.free_window_blocks);
  exchange->respond(200, "text/plain; version=0.0.4; charset=utf-8", std::move(text));
}

}  // namespace tidal::server
