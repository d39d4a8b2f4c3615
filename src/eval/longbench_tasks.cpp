#include "eval/longbench_tasks.h"

#include <algorithm>
#include <array>

namespace tidal {
namespace {

using Metric = LongBenchMetric;

// Prompts and lengths are data of the benchmark and match it to the letter, its slips ("asconcisely", spaces at the
// ends of lines) included: config/dataset2prompt.json, config/dataset2maxlen.json, pred.py and eval.py of
// github.com/THUDM/LongBench (MIT licence). Another version of that file writes "as concisely"; published figures are
// from this one.
constexpr std::string_view kPassages =
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "The following are given passages.\n{context}\n\n"
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "Question: {input}\nAnswer:";

// name, metric, most new tokens, chat, first line, stop at newline, prompt
constexpr std::array kTasks = {
    LongBenchTask{"narrativeqa", Metric::F1, 128, true, false, false,
                  "You are given a story, which can be either a novel or a movie script, and a question. Answer the "
                  "question asconcisely as you can, using a single phrase if possible. Do not provide any "
                  "explanation.\n\nStory: {context}\n\nNow, answer the question based on the story asconcisely as you "
                  "can, using a single phrase if possible. Do not provide any explanation.\n\nQuestion: "
                  "{input}\n\nAnswer:"},
    LongBenchTask{"qasper", Metric::F1, 128, true, false, false,
                  "You are given a scientific article and a question. Answer the question as concisely as you can, "
                  "using a single phrase or sentence if possible. If the question cannot be answered based on the "
                  "information in the article, write \"unanswerable\". If the question is a yes/no question, answer "
                  "\"yes\", \"no\", or \"unanswerable\". Do not provide any explanation.\n\nArticle: {context}\n\n "
                  "Answer the question based on the above article as concisely as you can, using a single phrase or "
                  "sentence if possible. If the question cannot be answered based on the information in the article, "
                  "write \"unanswerable\". If the question is a yes/no question, answer \"yes\", \"no\", or "
                  "\"unanswerable\". Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:"},
    LongBenchTask{
        "multifieldqa_en", Metric::F1, 64, true, false, false,
        "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question based "
        "on the above text, only give me the answer and do not output any other words.\n\nQuestion: "
        "{input}\nAnswer:"},
    LongBenchTask{"hotpotqa", Metric::F1, 32, true, false, false, kPassages},
    LongBenchTask{"2wikimqa", Metric::F1, 32, true, false, false, kPassages},
    LongBenchTask{"musique", Metric::F1, 32, true, false, false, kPassages},
    LongBenchTask{"gov_report", Metric::RougeL, 512, true, false, false,
                  "You are given a report by a government agency. Write a one-page summary of the "
                  "report.\n\nReport:\n{context}\n\nNow, write a one-page summary of the report.\n\nSummary:"},
    LongBenchTask{"qmsum", Metric::RougeL, 512, true, false, false,
                  "You are given a meeting transcript and a query containing a question or instruction. Answer the "
                  "query in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the "
                  "above meeting transcript in one or more sentences.\n\nQuery: {input}\nAnswer:"},
    LongBenchTask{"multi_news", Metric::RougeL, 512, true, false, false,
                  "You are given several news passages. Write a one-page summary of all news. "
                  "\n\nNews:\n{context}\n\nNow, write a one-page summary of all the news.\n\nSummary:"},
    LongBenchTask{"trec", Metric::Classification, 64, false, true, false,
                  "Please determine the type of the question below. Here are some examples of "
                  "questions.\n\n{context}\n{input}"},
    LongBenchTask{"triviaqa", Metric::F1, 32, false, true, false,
                  "Answer the question based on the given passage. Only give me the answer and do not output any other "
                  "words. The following are some examples.\n\n{context}\n\n{input}"},
    LongBenchTask{"samsum", Metric::RougeL, 128, false, true, true,
                  "Summarize the dialogue into a few short sentences. The following are some "
                  "examples.\n\n{context}\n\n{input}"},
    LongBenchTask{"lsht", Metric::Classification, 64, false, true, false,
                  "请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}"},
    LongBenchTask{"passage_count", Metric::Count, 32, true, false, false,
                  "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please "
                  "carefully read these paragraphs and determine how many unique paragraphs there are after removing "
                  "duplicates. In other words, how many non-repeating paragraphs are there in "
                  "total?\n\n{context}\n\nPlease enter the final count of unique paragraphs after removing duplicates. "
                  "The output format should only contain the number, such as 1, 2, 3, and so on.\n\nThe final answer "
                  "is: "},
    LongBenchTask{"passage_retrieval_en", Metric::Retrieval, 32, true, false, false,
                  "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the "
                  "abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the "
                  "number of the paragraph that the abstract is from. The answer format must be like \"Paragraph 1\", "
                  "\"Paragraph 2\", etc.\n\nThe answer is: ",
                  "Paragraph "},
    LongBenchTask{"passage_retrieval_zh", Metric::Retrieval, 32, true, false, false,
                  "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n"
                  "下面是一个摘要\n\n{input}\n\n请输入摘要所属段落的编号。"
                  "答案格式必须是\"段落1\"，\"段落2\"等格式\n\n答案是：",
                  "段落"},
    LongBenchTask{"lcc", Metric::CodeSimilarity, 64, false, false, false,
                  "Please complete the code given below. \n{context}Next line of code:\n"},
    LongBenchTask{"repobench-p", Metric::CodeSimilarity, 64, false, false, false,
                  "Please complete the code given below. \n{context}{input}Next line of code:\n"},
};

constexpr std::array<std::string_view, 3> kRefused = {"multifieldqa_zh", "dureader", "vcsum"};

}  // namespace

std::span<const LongBenchTask> longbench_tasks() { return kTasks; }

const LongBenchTask* find_longbench_task(std::string_view name) {
  const auto* const task = std::find_if(kTasks.begin(), kTasks.end(), [&](const auto& t) { return t.name == name; });
  return task == kTasks.end() ? nullptr : task;
}

std::span<const std::string_view> longbench_refused_tasks() { return kRefused; }

const char* longbench_metric_name(LongBenchMetric metric) {
  switch (metric) {
    case Metric::F1: return "f1";
    case Metric::RougeL: return "rouge-l";
    case Metric::CodeSimilarity: return "edit similarity";
    case Metric::Classification:
    case Metric::Retrieval:
    case Metric::Count: break;
  }
  return "accuracy";
}

}  // namespace tidal
