// What a runtime must do for the runner: open one model, and run it on tensors.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace flashbulb {

// A dense row-major tensor. `dtype` is numpy's word for it: float32, int32, int64, int8, uint8, float16.
struct Tensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<unsigned char> bytes;
};

// Bytes of one element; throws std::runtime_error for a dtype that is not among those above.
size_t width(const std::string& dtype);

struct Model {
  virtual ~Model() = default;
  // Run on inputs in the order in which the model takes them. Results that a caller names come in that order.
  virtual std::vector<Tensor> run(std::vector<Tensor>& inputs, const std::vector<std::string>& outputs) = 0;
};

// Open one method of a file. Runtimes without methods ignore the name. Throws std::runtime_error.
std::unique_ptr<Model> open_model(const std::string& file, const std::string& method, int threads);

// Name and version of the runtime.
std::string runtime();

}  // namespace flashbulb
