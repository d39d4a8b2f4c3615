#include "eval/greedy_answers.h"

#include <algorithm>
#include <optional>

#include "core/error.h"
#include "eval/next_token.h"

namespace tidal {
namespace {

/// One case on its way from the question to the end of the answer.
struct Course {
  Sequence sequence;
  const Plan* plan;
  GreedyAnswer* answer;
  size_t asked = 0;  // tokens of the question that are in the cache
  Token next = 0;    // to be decoded
  bool done = false;
};

class Answers {
 public:
  Answers(Engine& engine, const Tokenizer& tokenizer, std::span<const Token> question, AnswerLimit limit)
      : engine_(engine), tokenizer_(tokenizer), question_(question), limit_(limit) {}

  /// Goes on from the token that is most likely behind what the course has in its cache.
  void take(Course& course, Token token) const {
    if (course.asked < question_.size()) {
      course.next = question_[course.asked++];
      return;
    }
    if (tokenizer_.is_end(token)) {
      course.answer->ended = course.done = true;
      return;
    }
    const std::string piece = tokenizer_.piece(token);
    if (limit_.at_newline && piece == "\n" && course.answer->tokens > 0) {
      course.answer->ended = course.done = true;
      return;
    }
    course.answer->text += piece;
    course.next = token;
    course.done = ++course.answer->tokens >= limit_.tokens;
  }

  void run(std::span<Course> courses, const std::function<void(int)>& step) {
    for (;;) {
      std::vector<Course*> active;
      std::vector<Engine::Request> requests;
      for (Course& course : courses) {
        if (course.done) continue;
        active.push_back(&course);
        requests.push_back(
            {.sequence = &course.sequence, .tokens = {&course.next, 1}, .decode = true, .plan = course.plan});
      }
      if (active.empty()) return;
      const std::span<const LikelyToken> next = engine_.step(requests, 1);
      for (size_t i = 0; i < active.size(); ++i) {
        Course& course = *active[i];
        ++course.answer->steps;
        course.answer->bytes_read += engine_.decode_bytes(course.sequence.length(), *course.plan);
        take(course, next[i].token);
      }
      if (step) step(static_cast<int>(active.size()));
    }
  }

 private:
  Engine& engine_;
  const Tokenizer& tokenizer_;
  std::span<const Token> question_;
  AnswerLimit limit_;
};

}  // namespace

const char* to_string(QuestionAs how) { return how == QuestionAs::Dense ? "dense" : "sparse"; }

int64_t greedy_answer_tokens(int cases, int question, int most) {
  // One more for the densely asked question that others are forked from.
  return int64_t{kBlockTokens} * (blocks_for(int64_t{question} + most) + 1) * (cases + 1);
}

std::vector<GreedyAnswer> greedy_answers(Engine& engine, const Tokenizer& tokenizer, const Sequence& document,
                                         std::span<const Token> question, std::span<const AnswerCase> cases,
                                         AnswerLimit limit, const std::function<void(int)>& step) {
  if (question.empty()) fail("question: it is empty, at least one token is needed");
  if (limit.tokens < 1) fail("answer: at most {} tokens asked for, at least 1 is needed", limit.tokens);
  const int64_t needed = document.length() + static_cast<int64_t>(question.size()) + limit.tokens;
  if (needed > engine.options().context) {
    fail("question: {} tokens of document, question and answer do not fit in a context of {}", needed,
         engine.options().context);
  }
  std::optional<Sequence> asked;
  Token first = 0;  // of its answer
  for (const AnswerCase& which : cases) {
    which.plan->check(engine.model().hp);
    if (which.question == QuestionAs::Sparse || asked) continue;
    asked = document.fork();
    first = argmax(engine.prefill(*asked, question));
  }
  std::vector<GreedyAnswer> answers(cases.size());
  Answers run(engine, tokenizer, question, limit);
  for (size_t begin = 0; begin < cases.size(); begin += engine.options().sequences) {
    const size_t end = std::min(cases.size(), begin + engine.options().sequences);
    std::vector<Course> courses;
    for (size_t i = begin; i < end; ++i) {
      const bool dense = cases[i].question == QuestionAs::Dense;
      courses.push_back({.sequence = dense ? asked->fork() : document.fork(),
                         .plan = cases[i].plan,
                         .answer = &answers[i],
                         .asked = dense ? question.size() : 0});
      run.take(courses.back(), first);
    }
    run.run(courses, step);
  }
  return answers;
}

}  // namespace tidal
