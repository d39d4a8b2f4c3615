// Reading a folder of LongBench's JSON Lines.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "core/error.h"
#include "eval/longbench.h"

namespace tidal {
namespace {

using Json = nlohmann::json;

const Json& field(const Json& row, const char* name) {
  const auto found = row.find(name);
  if (found == row.end()) fail("field '{}' is missing", name);
  return *found;
}

std::string text_field(const Json& row, const char* name) {
  const Json& value = field(row, name);
  if (!value.is_string()) fail("field '{}' is {}, expected text", name, value.type_name());
  return value.get<std::string>();
}

std::vector<std::string> list_field(const Json& row, const char* name) {
  const Json& value = field(row, name);
  if (!value.is_array() || !std::all_of(value.begin(), value.end(), [](const Json& v) { return v.is_string(); })) {
    fail("field '{}' is not a list of texts", name);
  }
  return value.get<std::vector<std::string>>();
}

LongBenchExample to_example(const std::string& line, const LongBenchTask& task) {
  const Json row = Json::parse(line, nullptr, false);
  if (row.is_discarded()) fail("is not JSON");
  if (!row.is_object()) fail("is {}, expected a JSON object", row.type_name());
  LongBenchExample example;
  example.task = &task;
  example.input = text_field(row, "input");
  example.context = text_field(row, "context");
  example.answers = list_field(row, "answers");
  // null where a task has no classes.
  const bool classes = task.metric == LongBenchMetric::Classification;
  if (classes || !field(row, "all_classes").is_null()) example.classes = list_field(row, "all_classes");
  if (classes && example.classes.empty()) fail("field 'all_classes' is empty, expected the classes of {}", task.name);
  const Json& length = field(row, "length");
  if (!length.is_number_integer() || length < 0 || length > 1'000'000'000) {
    fail("field 'length' is {}, expected a count", length.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  example.length = length.get<int>();
  example.dataset = text_field(row, "dataset");
  text_field(row, "language");
  example.id = text_field(row, "_id");
  return example;
}

void read_file(const std::filesystem::path& path, const LongBenchTask& task, LongBenchData& data) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    data.errors.push_back(fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
    return;
  }
  const size_t before = data.examples.size();
  int number = 0;
  try {
    for (std::string line; std::getline(file, line);) {
      ++number;
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      LongBenchExample example = to_example(line, task);
      example.file = path.stem().string();
      example.line = number;
      // Names have changed between versions of the benchmark, so this is no error.
      if (number == 1 && example.dataset != task.name && example.dataset != example.file) {
        data.notes.push_back(
            fmt::format("{}: its rows are of '{}', scored as {}", path.string(), example.dataset, task.name));
      }
      data.examples.push_back(std::move(example));
    }
  } catch (const Error& error) {
    const size_t rows = data.examples.size() - before;
    data.errors.push_back(fmt::format("{}: line {}: {}; the {} row{} before it stay{}", path.string(), number,
                                      error.what(), rows, rows == 1 ? "" : "s", rows == 1 ? "s" : ""));
    return;
  }
  if (file.bad()) {
    data.errors.push_back(fmt::format("{}: cannot be read to its end", path.string()));
  } else if (data.examples.size() == before) {
    data.errors.push_back(fmt::format("{}: has no rows", path.string()));
  }
}

template <typename Names>
std::string joined(const Names& names) {
  std::string text;
  for (const auto& name : names) text += fmt::format("{}{}", text.empty() ? "" : ", ", name);
  return text;
}

bool refused(std::string_view name) {
  const auto names = longbench_refused_tasks();
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string refusal(const std::vector<std::string>& names) {
  return fmt::format("{}: not scored, the benchmark cuts Chinese text into words with a Python package (jieba)",
                     joined(names));
}

std::vector<const LongBenchTask*> wanted_tasks(const LongBenchOptions& options) {
  std::vector<const LongBenchTask*> tasks;
  std::vector<std::string> not_scored;
  for (const LongBenchTask& task : longbench_tasks()) {
    const auto& names = options.tasks;
    if (names.empty() || std::find(names.begin(), names.end(), task.name) != names.end()) tasks.push_back(&task);
  }
  for (const std::string& name : options.tasks) {
    if (refused(name)) not_scored.push_back(name);
    if (refused(name) || find_longbench_task(name) != nullptr) continue;
    std::vector<std::string_view> known;
    for (const LongBenchTask& task : longbench_tasks()) known.push_back(task.name);
    fail("LongBench task '{}' is not known, use some of {}", name, joined(known));
  }
  if (!not_scored.empty()) fail("LongBench task {}", refusal(not_scored));
  return tasks;
}

// The names before .jsonl. Throws when the folder cannot be read.
std::set<std::string> file_names(const std::string& folder) {
  std::set<std::string> names;
  std::error_code error;
  const std::filesystem::path path(folder);
  if (!std::filesystem::is_directory(path, error))
    fail("{}: is not a folder, expected one with LongBench's *.jsonl", folder);
  std::filesystem::directory_iterator entry(path, error), end;
  for (; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    if (entry->path().extension() == ".jsonl" && !entry->is_directory(ignored))
      names.insert(entry->path().stem().string());
  }
  if (error) fail("{}: cannot be read: {}", folder, error.message());
  return names;
}

std::string without_suffix(const std::string& name) {
  return name.ends_with("_e") ? name.substr(0, name.size() - 2) : name;
}

void note_others(const std::set<std::string>& names, const std::string& folder, LongBenchData& data) {
  std::vector<std::string> unknown, not_scored;
  for (const std::string& name : names) {
    if (refused(name)) {
      not_scored.push_back(name);
    } else if (find_longbench_task(name) == nullptr && find_longbench_task(without_suffix(name)) == nullptr) {
      unknown.push_back(name + ".jsonl");
    }
  }
  if (!not_scored.empty()) data.notes.push_back(refusal(not_scored));
  if (!unknown.empty()) data.notes.push_back(fmt::format("{}: no tasks of LongBench: {}", folder, joined(unknown)));
}

}  // namespace

LongBenchData read_longbench(const std::string& folder, const LongBenchOptions& options) {
  const std::vector<const LongBenchTask*> tasks = wanted_tasks(options);
  const std::set<std::string> names = file_names(folder);
  const std::string suffix = options.extended ? "_e" : "";
  LongBenchData data;
  std::vector<const LongBenchTask*> found;
  std::vector<std::string> missing;
  for (const LongBenchTask* task : tasks) {
    const std::string name = std::string(task->name) + suffix;
    if (names.count(name) > 0) {
      found.push_back(task);
    } else {
      missing.push_back(name + ".jsonl");
    }
  }
  if (options.tasks.empty()) {
    note_others(names, folder, data);
  } else if (!missing.empty()) {
    fail("{}: has no {}", folder, joined(missing));
  }
  if (found.empty()) {
    std::string why;
    for (const std::string& note : data.notes) why += "; " + note;
    fail("{}: has no file of a LongBench{} task that can be scored, e.g. qasper{}.jsonl{}", folder,
         options.extended ? "-E" : "", suffix, why);
  }
  for (const LongBenchTask* task : found) {
    read_file(std::filesystem::path(folder) / (std::string(task->name) + suffix + ".jsonl"), *task, data);
  }
  return data;
}

}  // namespace tidal
