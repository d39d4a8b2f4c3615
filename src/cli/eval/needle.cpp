#include <fmt/core.h>

#include <algorithm>

#include "cli/eval/commands.h"
#include "cli/eval/needle_grid.h"
#include "cli/eval/session.h"
#include "core/utf8.h"
#include "eval/greedy_answers.h"
#include "eval/needle.h"
#include "eval/prompt_cache.h"

namespace tidal {
namespace {

using Json = ResultFile::Json;

struct NeedleFlags {
  EvalFlags eval;
  std::string text;
  std::string lengths = "4096", depths = "5", question = "both", needle = "passkey";
  int keys = 4, places = 1, seed = 1;
};

class NeedleRun {
 public:
  NeedleRun(EvalSession& session, const NeedleFlags& flags)
      : session_(session),
        kind_(needle_kind_from(flags.needle)),
        seed_(static_cast<uint64_t>(flags.seed)),
        grid_(needle_grid(flags.lengths, flags.depths, flags.question, flags.keys)),
        text_(session.read_text(flags.text)) {
    need_at_least("--places", flags.places, 1);
    need_at_least("--seed", flags.seed, 0);
    session.check_context(grid_.lengths.back());
    for (const int length : grid_.lengths) places_.push_back(text_.places(flags.places, length));
    // The start of the text alone, where prompts are to come from one place.
    if (flags.places == 1) places_.assign(grid_.lengths.size(), {0});
    for (const int length : grid_.lengths) check(length);
    session.open("needle", {{"text", file_name(text_.name())},
                            {"text_hash", text_.hash()},
                            {"needle", to_string(kind_)},
                            {"places", flags.places},
                            {"seed", flags.seed}});
  }

  void run() {
    session_.begin(work_left());
    for (size_t l = 0; l < grid_.lengths.size(); ++l) run_length(l);
    session_.print(needle_table(session_, grid_));
    session_.print(
        fmt::format("\nNeedle: {}, {} at {} depths, {} each. Question sparse: decoded token by token by the plan; "
                    "dense: part of the "
                    "prefill. Answers are greedy and count when they begin with the key.\n",
                    to_string(kind_), text_.name(), grid_.depths.size(), grid_.keys));
    if (session_.draws()) session_.draw(needle_svg(session_, grid_, to_string(kind_)));
  }

 private:
  NeedlePrompt prompt(size_t l, double depth, int key) const {
    const Needle needle = make_needle(kind_, seed_, grid_.lengths[l], depth, key);
    const std::vector<int64_t>& places = places_[l];
    return needle_prompt(session_.tokenizer(), text_, places[key % places.size()], needle, grid_.lengths[l], depth);
  }

  /// Throws Error for a length that a needle does not fit in, before anything is computed.
  void check(int length) const {
    const Needle needle = make_needle(kind_, seed_, length, 0, 0);
    needle_prompt(session_.tokenizer(), text_, 0, needle, length, 0);
  }

  /// Cases of a prompt that have no row yet, as indices into grid_.cases(plans).
  std::vector<NeedleCase> missing(int length, double depth, int key) const {
    std::vector<NeedleCase> cases;
    for (const EvalPlan& plan : session_.plans()) {
      for (const QuestionAs question : grid_.questions) {
        const NeedleCase which{&plan, question};
        if (!session_.find(needle_key(length, depth, key, which))) cases.push_back(which);
      }
    }
    return cases;
  }

  /// About what prompts take, in units of advance(): prefilled tokens, and the steps of the cases.
  int64_t work_left() const {
    int64_t work = 0;
    for_each_prompt([&](size_t l, double depth, int key, bool first) {
      const std::vector<NeedleCase> cases = missing(grid_.lengths[l], depth, key);
      if (cases.empty()) return;
      work += first ? grid_.lengths[l] : static_cast<int64_t>((1 - depth) * grid_.lengths[l]);
      for (const NeedleCase& which : cases) work += case_work(which);
    });
    return work;
  }

  int64_t case_work(const NeedleCase& which) const {
    constexpr int kQuestion = 12, kAnswer = 8;  // tokens, about
    return int64_t{kStepWork} * (which.question == QuestionAs::Sparse ? kQuestion + kAnswer : kAnswer);
  }

  /// In the order in which prompts share most: those of one place after each other, the deepest needle first. `first`
  /// of a place: nothing is there to share.
  template <typename Use>
  void for_each_prompt(const Use& use) const {
    for (size_t l = 0; l < grid_.lengths.size(); ++l) for_each_prompt(l, use);
  }

  template <typename Use>
  void for_each_prompt(size_t l, const Use& use) const {
    const int places = static_cast<int>(places_[l].size());
    for (int place = 0; place < std::min(places, grid_.keys); ++place) {
      bool first = true;
      for (auto depth = grid_.depths.rbegin(); depth != grid_.depths.rend(); ++depth) {
        for (int key = place; key < grid_.keys; key += places) {
          use(l, *depth, key, first);
          first = false;
        }
      }
    }
  }

  void run_length(size_t l) {
    const int length = grid_.lengths[l];
    const int cases = static_cast<int>(session_.plans().size() * grid_.questions.size());
    std::optional<Engine> engine;
    std::optional<PromptCache> cache;
    for_each_prompt(l, [&](size_t, double depth, int key, bool) {
      const std::vector<NeedleCase> which = missing(length, depth, key);
      if (which.empty()) return;
      const NeedlePrompt asked = prompt(l, depth, key);
      const auto question = static_cast<int>(asked.question.size());
      const int room = length + 2 * asked.answer_tokens + 64;  // needles differ a little in length
      if (!engine) {
        engine.emplace(session_.backend(), session_.model(), Plan::full(session_.model().hp.layers),
                       EngineOptions{.context = room,
                                     .tokens = room + greedy_answer_tokens(std::min(cases, kStepSequences) + 1,
                                                                           question + 64, 2 * asked.answer_tokens),
                                     .sequences = std::min(cases, kStepSequences),
                                     .kv_type = session_.kv_type(),
                                     .whole_windows = true,  // prompts are cut back to what the next one shares
                                     .kv_place = session_.place(),
                                     .later_plans = session_.later_plans()});
        cache.emplace(*engine);
      }
      answer(*engine, *cache, asked, which, needle_prompt_key(length, depth, key));
    });
  }

  void answer(Engine& engine, PromptCache& cache, const NeedlePrompt& asked, const std::vector<NeedleCase>& which,
              const Json& key) {
    const Sequence& document = cache.prefill(asked.document, [&](int tokens) { session_.advance(tokens); });
    std::vector<AnswerCase> cases;
    cases.reserve(which.size());
    for (const NeedleCase& one : which) cases.push_back({&one.plan->plan, one.question});
    const std::vector<GreedyAnswer> answers =
        greedy_answers(engine, session_.tokenizer(), document, asked.question, cases, {.tokens = asked.answer_tokens},
                       [&](int sequences) { session_.advance(int64_t{kStepWork} * sequences); });
    for (size_t i = 0; i < which.size(); ++i) {
      Json row = key;
      row.update(needle_case_key(which[i]));
      session_.add(row, {{"found", finds_needle(asked.needle, answers[i].text)},
                         {"expected", asked.needle.answer},
                         {"answer", answers[i].text}});
    }
  }

  EvalSession& session_;
  NeedleKind kind_;
  uint64_t seed_;
  NeedleGrid grid_;
  TextTokens text_;
  std::vector<std::vector<int64_t>> places_;  // [lengths] first tokens in the text
};

}  // namespace

CLI::App* add_eval_needle(CLI::App& eval) {
  const auto flags = std::make_shared<NeedleFlags>();
  CLI::App* command = eval.add_subcommand("needle", "Find a key hidden in a long text: lengths x depths x keys");
  add_eval_flags(*command, flags->eval);
  command->add_option("-f,--file", flags->text, "The haystack (default: kjv.txt beside the model)")->type_name("FILE");
  command->add_option("--lengths", flags->lengths, "Tokens of a prompt, question included: 4096,16384")
      ->type_name("N,...")
      ->capture_default_str();
  command
      ->add_option("--depths", flags->depths,
                   "Where the needle is, in percent of the text: 0,50,100; a number alone is how many depths, evenly")
      ->type_name("N|P,...")
      ->capture_default_str();
  command->add_option("--keys", flags->keys, "Prompts for every length and depth, each with another key")
      ->type_name("N")
      ->capture_default_str();
  command
      ->add_option("--places", flags->places,
                   "Places of the text that the prompts of a cell are taken from; 1: all from its start, which shares "
                   "most of the prefill")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--needle", flags->needle, "passkey (five digits) or sentence")
      ->type_name("WORD")
      ->capture_default_str();
  command
      ->add_option("--question", flags->question,
                   "sparse: the question is decoded token by token by the plan; dense: it is part of the prefill; both")
      ->type_name("WORD")
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Of the keys")->type_name("N")->capture_default_str();
  command->callback(
      [flags] { run_eval(flags->eval, [&](EvalSession& session) { NeedleRun(session, *flags).run(); }); });
  return command;
}

}  // namespace tidal
