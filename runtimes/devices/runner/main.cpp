// The runner: opens one model and answers requests on its standard input until that ends.
//
//     runner FILE METHOD THREADS
//
// It first writes `ready RUNTIME|ARCH|FEATURES|LOAD_US|RSS_BYTES`, memory being that before the model was
// opened, and then, for each request, either `error WORDS` or `ok COUNT` with what the request is answered by.
// Lines end in \n; the bytes of a tensor follow its line at once, little-endian.
//
//     run INPUTS OUTPUTS      INPUTS times `NAME DTYPE SIZE...` and its bytes, OUTPUTS times `NAME`
//                             -> ok OUTPUTS, each as `NAME DTYPE SIZE...` and its bytes
//     time COUNT              the last inputs again -> ok COUNT, each as `WALL_US CPU_US`
//     last                    what the last `run` took -> ok 1, then `WALL_US CPU_US`
//     memory                  -> ok 1, then `PEAK_RSS_BYTES`
#include <sys/resource.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <sstream>
#include <stdexcept>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "runner.hpp"

namespace flashbulb {

constexpr int64_t kMostBytes = int64_t{1} << 31;
constexpr size_t kMostTensors = 64;
constexpr size_t kMostRuns = 100000;

size_t width(const std::string& dtype) {
  if (dtype == "float32" || dtype == "int32") return 4;
  if (dtype == "int64") return 8;
  if (dtype == "float16") return 2;
  if (dtype == "int8" || dtype == "uint8") return 1;
  throw std::runtime_error("no dtype " + dtype);
}

namespace {

int64_t microseconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return int64_t{now.tv_sec} * 1000000 + now.tv_nsec / 1000;
}

struct Duration {
  int64_t wall = 0, cpu = 0;  // microseconds
};

template <typename Work>
Duration timed(Work work) {
  const int64_t wall = microseconds(CLOCK_MONOTONIC), cpu = microseconds(CLOCK_PROCESS_CPUTIME_ID);
  work();
  return {microseconds(CLOCK_MONOTONIC) - wall, microseconds(CLOCK_PROCESS_CPUTIME_ID) - cpu};
}

int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

std::string features() {
#if defined(__aarch64__)
  const unsigned long bits = getauxval(AT_HWCAP);
  std::string found = "neon";
  if (bits & HWCAP_ASIMDDP) found += ",dotprod";
  if (bits & HWCAP_ASIMDHP) found += ",fp16";
#ifdef HWCAP_SVE
  if (bits & HWCAP_SVE) found += ",sve";
#endif
  return found;
#else
  return "";
#endif
}

Tensor read_tensor(std::istream& in) {
  std::string line;
  if (!std::getline(in, line)) throw std::runtime_error("the input ended inside a request");
  std::istringstream words(line);
  Tensor tensor;
  words >> tensor.name >> tensor.dtype;
  int64_t count = width(tensor.dtype);
  for (int64_t size; words >> size;) {
    if (size <= 0 || count > kMostBytes / size) throw std::runtime_error("a tensor of no or too much size");
    count *= size;
    tensor.shape.push_back(size);
  }
  tensor.bytes.resize(count);
  if (!in.read(reinterpret_cast<char*>(tensor.bytes.data()), count))
    throw std::runtime_error("the input ended inside a tensor");
  return tensor;
}

void write_tensor(std::ostream& out, const Tensor& tensor) {
  out << tensor.name << ' ' << tensor.dtype;
  for (int64_t size : tensor.shape) out << ' ' << size;
  out << '\n';
  out.write(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
}

class Loop {
 public:
  explicit Loop(Model& model) : model_(model) {}

  // Answer one request. What it must read is read before anything can fail, so that the next one is in place.
  void answer(const std::string& line, std::istream& in, std::ostream& out) {
    std::istringstream words(line);
    std::string verb;
    size_t first = 0, second = 0;
    words >> verb >> first >> second;
    if (verb == "run" && first <= kMostTensors && second <= kMostTensors) return run(first, second, in, out);
    if (verb == "time" && first <= kMostRuns) return time(first, out);
    if (verb == "last") return static_cast<void>(out << "ok 1\n" << last_.wall << ' ' << last_.cpu << '\n');
    if (verb != "memory") throw std::runtime_error("no request " + verb);
    out << "ok 1\n" << peak_rss_bytes() << '\n';
  }

 private:
  void run(size_t inputs, size_t outputs, std::istream& in, std::ostream& out) {
    inputs_.clear();
    outputs_.assign(outputs, "");
    for (size_t i = 0; i < inputs; ++i) inputs_.push_back(read_tensor(in));
    for (std::string& name : outputs_) std::getline(in, name);
    std::vector<Tensor> found;
    last_ = timed([&] { found = model_.run(inputs_, outputs_); });
    out << "ok " << found.size() << '\n';
    for (const Tensor& tensor : found) write_tensor(out, tensor);
  }

  void time(size_t count, std::ostream& out) {
    std::ostringstream lines;
    for (size_t i = 0; i < count; ++i) {
      const Duration took = timed([&] { model_.run(inputs_, outputs_); });
      lines << took.wall << ' ' << took.cpu << '\n';
    }
    out << "ok " << count << '\n' << lines.str();
  }

  Model& model_;
  std::vector<Tensor> inputs_;
  std::vector<std::string> outputs_;
  Duration last_;
};

void say_error(std::ostream& out, std::string words) {
  for (char& letter : words)
    if (letter == '\n' || letter == '\r') letter = ' ';
  out << "error " << words << '\n' << std::flush;
}

int serve(const std::string& file, const std::string& method, int threads) {
  const int64_t start = microseconds(CLOCK_MONOTONIC), memory = peak_rss_bytes();
  std::unique_ptr<Model> model;
  try {
    model = open_model(file, method, threads);
  } catch (const std::exception& error) {
    say_error(std::cout, error.what());
    return 1;
  }
  utsname name{};
  uname(&name);
  std::cout << "ready " << runtime() << '|' << name.machine << '|' << features() << '|'
            << microseconds(CLOCK_MONOTONIC) - start << '|' << memory << '\n'
            << std::flush;
  Loop loop(*model);
  for (std::string line; std::getline(std::cin, line);) {
    try {
      std::ostringstream answer;
      loop.answer(line, std::cin, answer);
      std::cout << answer.str() << std::flush;
    } catch (const std::exception& error) {
      say_error(std::cout, error.what());
    }
  }
  return 0;
}

}  // namespace
}  // namespace flashbulb

int main(int count, char** words) {
  std::ios::sync_with_stdio(false);
  if (count != 4) {
    std::cerr << "usage: " << words[0] << " FILE METHOD THREADS\n";
    return 2;
  }
  return flashbulb::serve(words[1], words[2], std::atoi(words[3]));
}
