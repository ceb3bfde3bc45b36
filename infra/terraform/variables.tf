variable "bucket" {
  type        = string
  description = "Name of the bucket to make; runs/ and datasets/ lie below it."
}

variable "versioning" {
  type        = bool
  default     = false
  description = "Keep replaced and deleted objects for noncurrent_days. genworker never replaces a shard, so this guards against people, and makes retention cost that much longer."
}

variable "noncurrent_days" {
  type        = number
  default     = 30
  description = "With versioning: days until an old version is gone."
}

variable "enforce_create_only" {
  type        = bool
  default     = true
  description = "Refuse every put of a shard, plan, manifest or marker below datasets/ that could overwrite, whoever sends it. Tools that copy datasets there without a condition are refused too."
}

variable "eks_cluster" {
  type        = string
  default     = null
  description = "Name of an EKS cluster whose service accounts genworker-trainer, -generator and -reader get the roles by Pod Identity; null for none."
}

variable "namespace" {
  type        = string
  default     = "genworker"
  description = "Kubernetes namespace of those service accounts."
}

variable "tags" {
  type        = map(string)
  default     = {}
  description = "Put on everything that can carry tags."
}
