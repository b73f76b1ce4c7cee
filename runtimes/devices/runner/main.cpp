// The runner: opens one model and answers requests on its standard input until that ends.
//
//     runner FILE METHOD THREADS
//
// It first writes `ready RUNTIME|ARCH|FEATURES|LOAD_US|RSS_BYTES`, memory being that resident before the model
// was opened, and then, for each request, either `error WORDS` or `ok COUNT` with what the request is answered by.
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
#include <fstream>
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

// Memory of this process. What getrusage tells survives exec, so that it may be that of a large parent: it is
// asked only where the kernel keeps no such line.
int64_t memory_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.compare(0, field.size(), field) == 0) return std::stoll(line.substr(field.size())) * 1024;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

int64_t resident_bytes() { return memory_bytes("VmRSS:"); }
int64_t peak_resident_bytes() { return memory_bytes("VmHWM:"); }

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

// A request whose length is not known, so that nobody can tell where the next one begins.
struct Unreadable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The bytes of a tensor by its dtype and sizes.
int64_t length(const Tensor& tensor) {
  int64_t count = 0;
  try {
    count = width(tensor.dtype);
  } catch (const std::runtime_error& error) {
    throw Unreadable(error.what());
  }
  for (int64_t size : tensor.shape) {
    if (size < 0 || (size > 0 && count > kMostBytes / size)) throw Unreadable("a tensor of too much size");
    count *= size;
  }
  return count;
}

Tensor read_tensor(std::istream& in) {
  std::string line;
  if (!std::getline(in, line)) throw Unreadable("the input ended inside a request");
  std::istringstream words(line);
  Tensor tensor;
  words >> tensor.name >> tensor.dtype;
  for (int64_t size; words >> size;) tensor.shape.push_back(size);
  if (!words.eof()) throw Unreadable("a size that is no number of a tensor " + tensor.name);
  tensor.bytes.resize(length(tensor));
  if (!in.read(reinterpret_cast<char*>(tensor.bytes.data()), tensor.bytes.size()))
    throw Unreadable("the input ended inside a tensor");
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

  // Answer one request. What follows its line is read before anything can fail, so that the next one is in
  // place; where its length is not known, nothing further can be in place, and the runner ends.
  void answer(const std::string& line, std::istream& in, std::ostream& out) {
    std::istringstream words(line);
    std::string verb;
    size_t first = 0, second = 0;
    words >> verb >> first >> second;
    if (verb == "run") {
      if (!words || first > kMostTensors || second > kMostTensors) throw Unreadable("a run of too many tensors");
      return run(first, second, in, out);
    }
    if (verb == "time" && first <= kMostRuns) return time(first, out);
    if (verb == "last") return static_cast<void>(out << "ok 1\n" << last_.wall << ' ' << last_.cpu << '\n');
    if (verb != "memory") throw std::runtime_error("no request " + verb);
    out << "ok 1\n" << peak_resident_bytes() << '\n';
  }

 private:
  void run(size_t inputs, size_t outputs, std::istream& in, std::ostream& out) {
    inputs_.clear();
    outputs_.assign(outputs, "");
    for (size_t i = 0; i < inputs; ++i) inputs_.push_back(read_tensor(in));
    for (std::string& name : outputs_) std::getline(in, name);
    for (const Tensor& tensor : inputs_)
      if (tensor.bytes.empty()) throw std::runtime_error("a tensor of no size: " + tensor.name);
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
  const int64_t start = microseconds(CLOCK_MONOTONIC), memory = resident_bytes();
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
    } catch (const Unreadable& error) {
      say_error(std::cout, error.what());
      return 1;
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
