{{/*
A part is a folder of manifests/kubernetes. Its objects are what its kustomization.yaml lists, changed by the values of the part; no
file has a copy here. Another overlay of its own objects needs a line in parts.yaml and its values.
Takes: root, folder, values.
*/}}
{{- define "wice.part" -}}
{{- $part := . }}
{{- $file := printf "%s/kustomization.yaml" .folder }}
{{- $kustomization := .root.Files.Get $file | required (printf "%s is not in the chart" $file) | fromYaml }}
{{- $generated := include "wice.generated" (dict "part" . "kustomization" $kustomization) }}
{{- $account := printf "system:serviceaccount:%s:wice" .root.Release.Namespace }}
{{- range $resource := $kustomization.resources }}
{{- if not (hasPrefix "../" $resource) }}
{{- $text := $part.root.Files.Get (printf "%s/%s" $part.folder $resource) }}
{{- $text = $text | replace "system:serviceaccount:wice:wice" $account | replace "'wice.riasc.eu/'" (printf "'%s/'" $part.root.Values.annotationPrefix) }}
{{- range regexSplit "(?m)^---$" $text -1 }}
{{- include "wice.object" (dict "part" $part "object" (fromYaml .) "generated" $generated) }}
{{- end }}
{{- end }}
{{- end }}
{{- $generated }}
{{- end }}

{{/* One object in the release's namespace, or nothing where values leave it out. */}}
{{- define "wice.object" -}}
{{- $object := .object }}
{{- $values := .part.values }}
{{- $kind := $object.kind }}
{{- $spec := $object.spec | default dict }}
{{- $namespace := .part.root.Release.Namespace }}
{{- $left := list "Namespace" }}
{{- if and (hasKey $values "admissionPolicy") (not $values.admissionPolicy) }}
{{- $left = concat $left (list "ValidatingAdmissionPolicy" "ValidatingAdmissionPolicyBinding") }}
{{- end }}
{{- if not (has $kind $left) }}
{{- $everywhere := list "ClusterRole" "ClusterRoleBinding" "ValidatingAdmissionPolicy" "ValidatingAdmissionPolicyBinding" }}
{{- if not (has $kind $everywhere) }}
{{- $_ := set $object.metadata "namespace" $namespace }}
{{- end }}
{{- range $object.subjects }}
{{- $_ := set . "namespace" $namespace }}
{{- end }}
{{- if and (eq $kind "ClusterRole") (hasKey $values "mesh") (ne ($values.mesh | toString) "kilo") }}
{{- $rules := list }}
{{- range $object.rules }}{{ if not (has "kilo.squat.ai" .apiGroups) }}{{ $rules = append $rules . }}{{ end }}{{ end }}
{{- $_ := set $object "rules" $rules }}
{{- end }}
{{- if eq $kind "Service" }}
{{- $_ := mergeOverwrite $spec ($values.service | default dict) }}
{{- with $values.serviceAnnotations }}{{ $_ := set $object.metadata "annotations" . }}{{ end }}
{{- end }}
{{- if eq $kind "PersistentVolumeClaim" }}
{{- $_ := mergeOverwrite $spec ($values.storage | default dict) }}
{{- end }}
{{- range $spec.volumeClaimTemplates }}
{{- $_ := mergeOverwrite .spec ($values.storage | default dict) }}
{{- end }}
{{- if hasKey $spec "template" }}
{{- $_ := include "wice.workload" . }}
{{- end }}
---
{{ toYaml $object }}
{{ end }}
{{- end }}

{{/* Changes a workload in place, and prints nothing. */}}
{{- define "wice.workload" -}}
{{- $values := .part.values }}
{{- $root := .part.root }}
{{- $template := .object.spec.template }}
{{- $pod := $template.spec }}
{{- $container := first $pod.containers }}
{{- $image := $root.Values.image }}
{{- $_ := set $container "image" (printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion)) }}
{{- with $image.pullPolicy }}{{ $_ := set $container "imagePullPolicy" . }}{{ end }}
{{- with $root.Values.imagePullSecrets }}{{ $_ := set $pod "imagePullSecrets" . }}{{ end }}
{{- with $values.resources }}{{ $_ := set $container "resources" . }}{{ end }}
{{- with $values.extraArgs }}{{ $_ := set $container "args" (concat $container.args .) }}{{ end }}
{{- range $field := list "affinity" "nodeSelector" "priorityClassName" "tolerations" }}
{{- with get $values $field }}{{ $_ := set $pod $field . }}{{ end }}
{{- end }}
{{- $env := deepCopy ($values.env | default dict) }}
{{- if ne $root.Values.annotationPrefix "wice.riasc.eu" }}{{ $_ := set $env "WICE_ANNOTATION_PREFIX" $root.Values.annotationPrefix }}{{ end }}
{{- range $name, $value := $env }}
{{- $others := list }}
{{- range $container.env }}{{ if ne .name $name }}{{ $others = append $others . }}{{ end }}{{ end }}
{{- $entry := dict "name" $name "value" (toString $value) }}
{{- $_ := set $container "env" (append $others $entry) }}
{{- end }}
{{- range $values.hostFiles }}
{{- $mount := dict "name" .name "mountPath" .mountPath "readOnly" true }}
{{- $_ := set $container "volumeMounts" (append $container.volumeMounts $mount) }}
{{- $_ := set $pod "volumes" (append $pod.volumes (dict "name" .name "hostPath" (dict "path" .path "type" "File"))) }}
{{- end }}
{{- with $values.existingSecret }}
{{- range $pod.volumes }}{{ with .secret }}{{ $_ := set . "secretName" $values.existingSecret }}{{ end }}{{ end }}
{{- end }}
{{- $annotations := deepCopy ($values.podAnnotations | default dict) }}
{{- with .generated }}{{ $_ := set $annotations "checksum/config" (sha256sum .) }}{{ end }}
{{- with $annotations }}{{ $_ := set $template.metadata "annotations" . }}{{ end }}
{{- with $values.podLabels }}{{ $_ := set $template.metadata "labels" (merge (deepCopy $template.metadata.labels) .) }}{{ end }}
{{- end }}

{{/* What kustomize's generators make: the checksum in the pods' annotations is what the suffix of names is there. */}}
{{- define "wice.generated" -}}
{{- $part := .part }}
{{- $values := $part.values }}
{{- range .kustomization.configMapGenerator }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .name }}
  namespace: {{ $part.root.Release.Namespace }}
data:
  {{- range .files }}
  {{ . }}: {{ $values.config | default ($part.root.Files.Get (printf "%s/%s" $part.folder .)) | toJson }}
  {{- end }}
{{- end }}
{{- if not $values.existingSecret }}
{{- range .kustomization.secretGenerator }}
---
apiVersion: v1
kind: Secret
metadata:
  name: {{ .name }}
  namespace: {{ $part.root.Release.Namespace }}
type: Opaque
data:
  {{- range .files }}
  {{ . }}: {{ $values.config | default ($part.root.Files.Get (printf "%s/%s" $part.folder .)) | b64enc | quote }}
  {{- end }}
  {{- range .literals }}
  {{- $entry := splitn "=" 2 . }}
  {{ $entry._0 }}: {{ $values.turnPassword | default $entry._1 | b64enc | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}
