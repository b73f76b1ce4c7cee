// ONNX Runtime, through its C interface.
//
// Wheels carry the library without its header. The interface is a table of functions to which releases only
// ever append, so the few places used here are named by their number; every one is called by the tests.
#include <cstring>
#include <stdexcept>

#include "runner.hpp"

extern "C" {
struct OrtApiBase {
  const void* (*get_api)(uint32_t version);
  const char* (*get_version)();
};
const OrtApiBase* OrtGetApiBase();
}

namespace flashbulb {
namespace {

constexpr uint32_t kInterface = 17;  // the first runtime that the manifests of bundles ask for
constexpr int kErrorsOnly = 3, kArena = 1, kDefaultMemory = 0;

enum Place : size_t {
  kGetErrorMessage = 2,
  kCreateEnv = 3,
  kCreateSession = 7,
  kRun = 9,
  kCreateSessionOptions = 10,
  kSetIntraOpNumThreads = 24,
  kSetInterOpNumThreads = 25,
  kCreateTensorWithData = 49,
  kGetTensorMutableData = 51,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kCreateCpuMemoryInfo = 69,
  kReleaseStatus = 93,
  kReleaseValue = 96,
  kReleaseTensorTypeAndShape = 99,
};

const OrtApiBase* base() { return OrtGetApiBase(); }

template <typename... Arguments>
void* raw(Place place, Arguments... arguments) {
  static void* const* const table = static_cast<void* const*>(base()->get_api(kInterface));
  if (table == nullptr) throw std::runtime_error("this ONNX Runtime is older than 1.17");
  return reinterpret_cast<void* (*)(Arguments...)>(table[place])(arguments...);
}

// Call a function that returns a status, and throw its message.
template <typename... Arguments>
void call(Place place, Arguments... arguments) {
  void* status = raw(place, arguments...);
  if (status == nullptr) return;
  const std::string words = static_cast<const char*>(raw(kGetErrorMessage, status));
  raw(kReleaseStatus, status);
  throw std::runtime_error(words);
}

struct Value {
  void* pointer = nullptr;
  Value() = default;
  Value(Value&& other) noexcept : pointer(other.pointer) { other.pointer = nullptr; }
  Value(const Value&) = delete;
  ~Value() {
    if (pointer != nullptr) raw(kReleaseValue, pointer);
  }
};

struct Element {
  const char* dtype;
  int number;
};
constexpr Element kElements[] = {{"float32", 1}, {"uint8", 2},  {"int8", 3},
                                 {"int32", 6},   {"int64", 7}, {"float16", 10}};

int number(const std::string& dtype) {
  for (const Element& element : kElements)
    if (dtype == element.dtype) return element.number;
  throw std::runtime_error("no dtype " + dtype);
}

std::string word(int number) {
  for (const Element& element : kElements)
    if (number == element.number) return element.dtype;
  throw std::runtime_error("a result of the element type " + std::to_string(number) + ", which has no name here");
}

class Session : public Model {
 public:
  Session(const std::string& file, int threads) {
    void *environment = nullptr, *options = nullptr;
    call(kCreateEnv, kErrorsOnly, static_cast<const char*>("flashbulb"), &environment);
    call(kCreateSessionOptions, &options);
    call(kSetIntraOpNumThreads, options, threads);
    call(kSetInterOpNumThreads, options, 1);
    call(kCreateSession, environment, file.c_str(), options, &session_);
    call(kCreateCpuMemoryInfo, kArena, kDefaultMemory, &memory_);
  }

  std::vector<Tensor> run(std::vector<Tensor>& inputs, const std::vector<std::string>& outputs) override {
    std::vector<Value> given, found(outputs.size());
    std::vector<const char*> input_names, output_names;
    std::vector<void*> in, out(outputs.size(), nullptr);
    for (Tensor& input : inputs) {
      given.push_back(wrapped(input));
      in.push_back(given.back().pointer);
      input_names.push_back(input.name.c_str());
    }
    for (const std::string& name : outputs) output_names.push_back(name.c_str());
    call(kRun, session_, static_cast<const void*>(nullptr), input_names.data(), in.data(), in.size(),
         output_names.data(), output_names.size(), out.data());
    std::vector<Tensor> results;
    for (size_t i = 0; i < out.size(); ++i) found[i].pointer = out[i];
    for (size_t i = 0; i < out.size(); ++i) results.push_back(copied(outputs[i], out[i]));
    return results;
  }

 private:
  Value wrapped(Tensor& input) const {
    Value value;
    call(kCreateTensorWithData, static_cast<const void*>(memory_), static_cast<void*>(input.bytes.data()),
         input.bytes.size(), static_cast<const int64_t*>(input.shape.data()), input.shape.size(),
         number(input.dtype), &value.pointer);
    return value;
  }

  static Tensor copied(const std::string& name, void* value) {
    void *information = nullptr, *data = nullptr;
    int type = 0;
    size_t rank = 0;
    call(kGetTensorTypeAndShape, value, &information);
    call(kGetTensorElementType, information, &type);
    call(kGetDimensionsCount, information, &rank);
    Tensor result{name, word(type), std::vector<int64_t>(rank), {}};
    call(kGetDimensions, information, result.shape.data(), rank);
    raw(kReleaseTensorTypeAndShape, information);
    call(kGetTensorMutableData, value, &data);
    size_t bytes = width(result.dtype);
    for (int64_t size : result.shape) bytes *= size;
    result.bytes.resize(bytes);
    std::memcpy(result.bytes.data(), data, bytes);
    return result;
  }

  void* session_ = nullptr;
  void* memory_ = nullptr;
};

}  // namespace

std::unique_ptr<Model> open_model(const std::string& file, const std::string&, int threads) {
  return std::make_unique<Session>(file, threads);
}

std::string runtime() { return std::string("onnxruntime ") + base()->get_version(); }

}  // namespace flashbulb
