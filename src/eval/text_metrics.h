// How well an answer agrees with a reference, by the metrics of LongBench (github.com/THUDM/LongBench, metrics.py).
// Each gives a share from 0 to 1 and follows that file where it is peculiar, so that figures can be compared with
// published ones. Text is UTF-8; bytes that are not count as U+FFFD.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace tidal {

/// Lower case, without ASCII punctuation, without the words a, an and the, one space between words.
std::string normalise_answer(std::string_view text);

/// qa_f1_score: F1 of the words of the two normalised texts, counted with their repetitions. 0 when they share none,
/// also when both are empty.
double qa_f1_score(std::string_view prediction, std::string_view truth);

/// rouge_score: the F value of ROUGE-L as the Python package rouge (1.0.1) computes it. Sentences end at every "."; the
/// words of the longest common subsequence of each pair of sentences are joined into one set, whose size is divided by
/// the number of different words of either text; F = 2 P R / (P + R + 1e-8). 0 when either text has nothing but dots.
/// The original gives 0 where its recursion goes too deep (sentences of together about 1000 words); this goes on.
double rouge_l_score(std::string_view prediction, std::string_view truth);

/// classification_score: 1 over the number of classes that are named in the prediction when `truth` is one of them,
/// else 0. Classes that are only part of the name of `truth` do not count; as in the original, the one after such a
/// class is not looked at.
double classification_score(std::string_view prediction, std::string_view truth, std::span<const std::string> classes);

/// retrieval_score: the share of the numbers in the prediction that are the number after `word` ("Paragraph ") in the
/// reference; 0 when the prediction has no number. Throws Error when the reference has none after `word`.
double retrieval_score(std::string_view prediction, std::string_view truth, std::string_view word);

/// count_score: the share of the numbers in the prediction that are `truth`, compared as text.
double count_score(std::string_view prediction, std::string_view truth);

/// code_sim_score: edit similarity of `truth` and the first line of the prediction that has no "`", "#" or "//",
/// in whole per cents, which is what fuzzywuzzy's ratio gives. 0 when one of the two is empty, 1 when both are.
double code_similarity_score(std::string_view prediction, std::string_view truth);

/// Ratcliff and Obershelp's similarity as Python's difflib computes it: twice the matching characters over all
/// characters, where texts of 200 characters and more do not begin a match at their commonest ones (autojunk). This is
/// what fuzzywuzzy uses unless python-Levenshtein is installed as well. 1 for two empty texts.
double matching_ratio(std::u32string_view a, std::u32string_view b);

}  // namespace tidal
